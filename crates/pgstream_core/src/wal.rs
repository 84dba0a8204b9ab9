//! Positions in the write-ahead log.

/// The headers of a page, and of the first page of a segment file: PostgreSQL's
/// `SizeOfXLogShortPHD` and `SizeOfXLogLongPHD`.
const HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

/// Where the last record ends when the next one will begin at `next`, in a log with pages and segments of
/// these sizes in bytes: before the header of a page that has nothing else yet.
pub fn end_of_record(next: u64, page: u64, segment: u64) -> u64 {
    let header = if next % segment < page { LONG_HEADER } else { HEADER };
    if next % page == header { next - header } else { next }
}

#[cfg(test)]
mod tests {
    use super::end_of_record;

    #[test]
    fn a_page_with_nothing_but_its_header_does_not_count() {
        const PAGE: u64 = 8192;
        const SEGMENT: u64 = 16 << 20;
        for (next, end) in [
            (3 * SEGMENT + 40, 3 * SEGMENT),
            (3 * SEGMENT + 48, 3 * SEGMENT + 48),
            (SEGMENT + PAGE + 24, SEGMENT + PAGE),
            // A record that goes on from the page before ends here.
            (SEGMENT + PAGE + 32, SEGMENT + PAGE + 32),
            (SEGMENT + PAGE + 40, SEGMENT + PAGE + 40),
            (SEGMENT + PAGE - 8, SEGMENT + PAGE - 8),
        ] {
            assert_eq!(end_of_record(next, PAGE, SEGMENT), end, "{next}");
        }
    }
}
