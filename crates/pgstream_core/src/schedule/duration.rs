//! Durations such as `1h30m`.

/// The units, largest first, with their length in seconds.
const UNITS: [(char, i64); 5] = [('w', 604_800), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// The seconds of a duration: `<number><unit>` one after the other, with the units s, m, h, d and
/// w, or digits alone, which are seconds. `None` when it is something else or does not fit.
pub fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    if text.bytes().all(|it| it.is_ascii_digit()) {
        return text.parse().ok();
    }
    let mut total: i64 = 0;
    let mut number = String::new();
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            number.push(letter);
        } else {
            let (_, length) =
                UNITS.into_iter().find(|(unit, _)| *unit == letter.to_ascii_lowercase())?;
            let count: i64 = number.parse().ok()?;
            total = total.checked_add(count.checked_mul(length)?)?;
            number.clear();
        }
    }
    number.is_empty().then_some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn documented_forms() {
        assert_eq!(parse("30s"), Some(30));
        assert_eq!(parse("5m"), Some(300));
        assert_eq!(parse("1h30m"), Some(5400));
        assert_eq!(parse("2d"), Some(172_800));
        assert_eq!(parse("1w"), Some(604_800));
        assert_eq!(parse("90"), Some(90));
        assert_eq!(parse("0"), Some(0));
    }

    #[test]
    fn anything_else_is_none() {
        for text in
            ["", "   ", "m", "1x", "1h30", "-5s", "1.5h", "5 m", "1mm", "99999999999999999w", "٣s"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn is_total(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn parts_add_up(parts in prop::collection::vec((0i64..100_000, 0usize..5), 1..6)) {
            let text: String =
                parts.iter().map(|(count, unit)| format!("{count}{}", UNITS[*unit].0)).collect();
            let seconds = parts.iter().map(|(count, unit)| count * UNITS[*unit].1).sum::<i64>();
            prop_assert_eq!(parse(&text), Some(seconds));
        }

        #[test]
        fn bare_digits_are_seconds(seconds in 0i64..) {
            prop_assert_eq!(parse(&seconds.to_string()), Some(seconds));
        }
    }
}
