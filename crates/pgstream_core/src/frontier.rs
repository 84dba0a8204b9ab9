//! How far the changes of a transaction history have been consumed.
//!
//! A log position cannot order commits: a transaction may write early and commit late. So a
//! frontier is a snapshot, and a change belongs to the future of the frontier exactly when that
//! snapshot did not see the transaction that made it. The law that the whole engine rests on: for
//! frontiers F taken before G, "seen by G and not consumed by F" are the changes between both, each
//! once, whatever committed when.
//!
//! A snapshot says nothing about its own transaction, which may change, refresh, change and refresh
//! again. So a frontier also notes how many of the changes of its own transaction were consumed, as
//! the last ordinal.

use std::{fmt, num::ParseIntError, str::FromStr};

/// A snapshot, and how far into its own transaction. The default has consumed nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    /// Every transaction below is finished.
    pub xmin: u64,
    /// No transaction at or above was finished.
    pub xmax: u64,
    /// The unfinished transactions between both, in ascending order.
    pub in_progress: Vec<u64>,
    /// The transaction that took the snapshot, if it had an id by then.
    pub own_xid: Option<u64>,
    /// The last change of `own_xid` that was consumed.
    pub own_ordinal: i64,
}

impl Frontier {
    /// Whether the change number `ordinal` of the committed transaction `xid` was consumed.
    pub fn consumed(&self, xid: u64, ordinal: i64) -> bool {
        if Some(xid) == self.own_xid {
            return ordinal <= self.own_ordinal;
        }
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }
}

/// `xmin:xmax:a,b`, followed by `;own:ordinal` when the transaction had an id.
impl fmt::Display for Frontier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.in_progress.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{xid}")?;
        }
        match self.own_xid {
            Some(own) => write!(f, ";{own}:{}", self.own_ordinal),
            None => Ok(()),
        }
    }
}

/// The text is not one that a [`Frontier`] prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidFrontier;

impl fmt::Display for InvalidFrontier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a frontier")
    }
}

impl std::error::Error for InvalidFrontier {}

impl From<ParseIntError> for InvalidFrontier {
    fn from(_: ParseIntError) -> Self {
        Self
    }
}

impl FromStr for Frontier {
    type Err = InvalidFrontier;

    fn from_str(text: &str) -> Result<Self, InvalidFrontier> {
        let (snapshot, own) = match text.split_once(';') {
            Some((snapshot, own)) => (snapshot, Some(own)),
            None => (text, None),
        };
        let (xmin, rest) = snapshot.split_once(':').ok_or(InvalidFrontier)?;
        let (xmax, list) = rest.split_once(':').ok_or(InvalidFrontier)?;
        let in_progress: Vec<u64> = if list.is_empty() {
            Vec::new()
        } else {
            list.split(',').map(str::parse).collect::<Result<_, _>>()?
        };
        if !in_progress.is_sorted() {
            return Err(InvalidFrontier);
        }
        let (own_xid, own_ordinal) = match own {
            None => (None, 0),
            Some(own) => {
                let (xid, ordinal) = own.split_once(':').ok_or(InvalidFrontier)?;
                (Some(xid.parse()?), ordinal.parse()?)
            }
        };
        Ok(Self { xmin: xmin.parse()?, xmax: xmax.parse()?, in_progress, own_xid, own_ordinal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frontier(text: &str) -> Frontier {
        text.parse().expect("a frontier")
    }

    #[test]
    fn a_snapshot_consumes_what_it_saw() {
        let it = frontier("10:20:12,15");
        let consumed: Vec<u64> = (8..24).filter(|&xid| it.consumed(xid, 1)).collect();
        assert_eq!(consumed, [8, 9, 10, 11, 13, 14, 16, 17, 18, 19]);
    }

    #[test]
    fn the_own_transaction_is_consumed_up_to_the_ordinal_wherever_its_id_lies() {
        for it in ["10:20:12;11:7", "10:20:12;12:7", "10:20:12;30:7"].map(frontier) {
            let own = it.own_xid.expect("given");
            assert!(it.consumed(own, 7), "{it}");
            assert!(!it.consumed(own, 8), "{it}");
        }
    }

    #[test]
    fn nothing_is_consumed_at_first() {
        assert!(!Frontier::default().consumed(0, 0));
        assert!(!Frontier::default().consumed(3, 1));
    }

    #[test]
    fn every_change_lies_between_exactly_one_pair_of_frontiers() {
        // 12 runs on through the first two snapshots, 15 through the first; 18 refreshes itself.
        let history = ["0:0:", "12:16:12,15;18:3", "12:20:12", "25:25:"].map(frontier);
        for xid in 3..25 {
            for ordinal in [2, 3, 4] {
                let times = history
                    .windows(2)
                    .filter(|pair| {
                        !pair[0].consumed(xid, ordinal) && pair[1].consumed(xid, ordinal)
                    })
                    .count();
                assert_eq!(times, 1, "transaction {xid}, change {ordinal}");
            }
        }
    }

    #[test]
    fn the_text_form_comes_back() {
        for text in ["10:10:", "10:20:12", "10:20:12,15;18:0", "1:2:;3:9223372036854775807"] {
            assert_eq!(frontier(text).to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_rejected() {
        for text in ["", "1", "1:2", "1:2:x", "1:2:5,4", "1:2:;3", "1:2:;3:", "-1:2:"] {
            assert_eq!(text.parse::<Frontier>(), Err(InvalidFrontier), "{text:?}");
        }
    }
}
