//! Cutting a deparsed expression into text and columns.
//!
//! PostgreSQL's deparser prints a column of the input, given to it as a parameter, as `$1`, `$2`,
//! and so on. The same characters may stand in literals and names, so this knows how those are
//! quoted. The text was printed with `standard_conforming_strings` on.

use crate::scalar::Segment;

/// Cuts `text`; parameter `$n` becomes the column `n - 1`.
pub fn segments(text: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = token_length(rest, first);
        let (token, tail) = rest.split_at(length);
        match token.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok()) {
            Some(number) if number > 0 => {
                if !plain.is_empty() {
                    segments.push(Segment::Text(std::mem::take(&mut plain)));
                }
                segments.push(Segment::Column(number - 1));
            }
            _ => plain.push_str(token),
        }
        rest = tail;
    }
    if !plain.is_empty() {
        segments.push(Segment::Text(plain));
    }
    segments
}

/// The bytes that the token at the start of `text` takes.
fn token_length(text: &str, first: char) -> usize {
    match first {
        '\'' | '"' => quoted_length(text, first, false),
        'e' | 'E' if text[1..].starts_with('\'') => 1 + quoted_length(&text[1..], '\'', true),
        '$' => 1 + text[1..].bytes().take_while(u8::is_ascii_digit).count(),
        _ if is_word(first) => text.find(|it| !(is_word(it) || it == '$')).unwrap_or(text.len()),
        _ => first.len_utf8(),
    }
}

/// The bytes up to the closing quote; a doubled quote is not one, and with `escapes` neither is
/// one after a backslash.
fn quoted_length(text: &str, quote: char, escapes: bool) -> usize {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((index, character)) = characters.next() {
        if escapes && character == '\\' {
            characters.next();
        } else if character == quote
            && characters.next_if(|(_, following)| *following == quote).is_none()
        {
            return index + quote.len_utf8();
        }
    }
    text.len()
}

fn is_word(character: char) -> bool {
    character == '_' || character.is_ascii_alphanumeric() || !character.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cut text with columns as `<0>`.
    fn cut(text: &str) -> String {
        segments(text)
            .iter()
            .map(|segment| match segment {
                Segment::Text(text) => text.clone(),
                Segment::Column(position) => format!("<{position}>"),
            })
            .collect()
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(cut(text), expected);
    }

    #[test]
    fn finds_columns() {
        check("($1 + $23)", "(<0> + <22>)");
        check("$1", "<0>");
        check("($2)::numeric(10,2)", "(<1>)::numeric(10,2)");
        check("(($1).f)[$2]", "((<0>).f)[<1>]");
        check("count(*) FILTER (WHERE $1)", "count(*) FILTER (WHERE <0>)");
    }

    #[test]
    fn leaves_literals_alone() {
        check("COALESCE($102, 'a$1b'::text)", "COALESCE(<101>, 'a$1b'::text)");
        check("'it''s $1' || $1", "'it''s $1' || <0>");
        check(r"'\' || $1", r"'\' || <0>");
        check(r"E'\'$1' || $1", r"E'\'$1' || <0>");
        check(r"E'a\\' || $1", r"E'a\\' || <0>");
        check("'$1.00'::money", "'$1.00'::money");
        check("'' || $1 || ''", "'' || <0> || ''");
    }

    #[test]
    fn leaves_names_alone() {
        check(r#""a$1"($1)"#, r#""a$1"(<0>)"#);
        check(r#""q""$1"."x'"($2)"#, r#""q""$1"."x'"(<1>)"#);
        check("a$1($1)", "a$1(<0>)");
        check("é$1($1)", "é$1(<0>)");
        check("e'$1'", "e'$1'");
        check("type'$1'", "type'$1'");
    }

    #[test]
    fn keeps_every_byte() {
        for text in ["", "'open", "\"open", "$", "$0", "a$", "E'", "ü'ü'ü"] {
            let printed: String = segments(text)
                .iter()
                .map(|segment| match segment {
                    Segment::Text(text) => text.clone(),
                    Segment::Column(position) => format!("${}", position + 1),
                })
                .collect();
            assert_eq!(printed, text);
        }
    }
}
