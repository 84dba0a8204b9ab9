//! The constructs of SQL that the tester knows, and which pairs of them it has met.

use std::collections::{BTreeMap, BTreeSet};

use super::random::Random;

macro_rules! constructs {
    ($($variant:ident $words:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Construct { $($variant,)* }

        impl Construct {
            const ALL: &[Self] = &[$(Self::$variant,)*];

            pub fn words(self) -> &'static str {
                match self { $(Self::$variant => $words,)* }
            }
        }
    };
}

constructs! {
    InnerJoin "inner join",
    LeftJoin "left join",
    RightJoin "right join",
    FullJoin "full join",
    NonEquiJoin "join without equality",
    JoinUsing "USING, NATURAL",
    SubQueryInJoin "sub-query in ON",
    Exists "EXISTS",
    NotExists "NOT EXISTS",
    In "IN (query)",
    NotIn "NOT IN (query)",
    Any "op ANY (query)",
    All "op ALL (query)",
    Scalar "scalar sub-query",
    ArrayOf "ARRAY(query)",
    RowCompare "row op (query)",
    Correlated "correlated",
    UnderOr "sub-query under OR, NOT, CASE",
    SubQueryInList "sub-query in the select list",
    SubQueryInHaving "sub-query in HAVING",
    Lateral "LATERAL",
    LeftLateral "LEFT JOIN LATERAL",
    FunctionInFrom "function in FROM",
    Ordinality "WITH ORDINALITY",
    RowsFrom "ROWS FROM",
    JsonTable "JSON_TABLE",
    SetReturningItem "set-returning item",
    SubQueryInFrom "sub-query in FROM",
    Group "GROUP BY",
    NoGroup "aggregates without GROUP BY",
    GroupingSets "grouping sets",
    Having "HAVING",
    Rescanned "aggregates by group",
    Extremum "min, max",
    Distinct "DISTINCT",
    DistinctOn "DISTINCT ON",
    UnionAll "UNION ALL",
    Union "UNION",
    Intersect "INTERSECT",
    IntersectAll "INTERSECT ALL",
    Except "EXCEPT",
    ExceptAll "EXCEPT ALL",
    Window "window by rank or aggregate",
    Positional "window by position",
    WindowOverGroup "window above grouping",
    Limit "LIMIT in a sub-query",
    Cte "WITH",
    CteTwice "WITH, used twice",
    RecursiveUnion "recursive UNION",
    RecursiveAll "recursive UNION ALL",
    SearchCycle "SEARCH, CYCLE",
    View "view",
    StreamTable "stream table as source",
    Partitioned "partitioned table",
    Inheritance "inheritance parent",
}

pub type Constructs = BTreeSet<Construct>;

/// Constructs to do without in a case: half of all, so that what is left meets more often, and
/// alone.
pub fn half(random: &mut Random) -> Constructs {
    Construct::ALL.iter().copied().filter(|_| random.chance(50)).collect()
}

/// What has been met in one query at least.
#[derive(Debug, Default)]
pub struct Coverage {
    pairs: BTreeSet<(Construct, Construct)>,
    /// Stream tables with the construct, and how many of them are evaluated as a whole somewhere.
    whole: BTreeMap<Construct, (u64, u64)>,
}

impl Coverage {
    pub fn add(&mut self, constructs: &Constructs, is_whole: bool) {
        self.pairs.extend(pairs_of(constructs));
        for construct in constructs {
            let (all, whole) = self.whole.entry(*construct).or_default();
            *all += 1;
            *whole += u64::from(is_whole);
        }
    }

    /// How many pairs would be new.
    pub fn news(&self, constructs: &Constructs) -> usize {
        pairs_of(constructs).filter(|pair| !self.pairs.contains(pair)).count()
    }

    /// The share of pairs met, those that are missing, and the shares of whole evaluation.
    pub fn summary(&self) -> String {
        let all: Constructs = Construct::ALL.iter().copied().collect();
        let missing: Vec<_> = pairs_of(&all).filter(|pair| !self.pairs.contains(pair)).collect();
        let count = pairs_of(&all).count();
        let mut text = format!("{} of {count} pairs of constructs covered", count - missing.len());
        for (one, other) in &missing {
            text += &format!("\n  missing {} + {}", one.words(), other.words());
        }
        text += "\nevaluated as a whole, at least in part, of the stream tables with";
        for (construct, (all, whole)) in &self.whole {
            let share = 100 * whole / all;
            text += &format!("\n  {share:3} % of {all:5}  {}", construct.words());
        }
        text
    }
}

fn pairs_of(constructs: &Constructs) -> impl Iterator<Item = (Construct, Construct)> {
    let others = |one: Construct| constructs.range(one..).map(move |other| (one, *other));
    constructs.iter().flat_map(move |one| others(*one)).filter(|(one, other)| one != other)
}
