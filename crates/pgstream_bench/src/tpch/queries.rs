//! The 22 queries, with the validation parameters, without their last ORDER BY.

use tpchgen::q_and_a::queries::query;

/// One of the 22.
#[derive(Debug, Clone)]
pub struct Query {
    pub number: i32,
    /// What must exist before (the view of query 15).
    pub setup: Option<String>,
    pub sql: String,
}

impl Query {
    /// The name of its stream table.
    pub fn name(&self) -> String {
        format!("q{:02}", self.number)
    }
}

/// All of them. `scale` matters to query 11, whose threshold depends on it.
pub fn all(scale: f64) -> Vec<Query> {
    (1..=22).map(|number| one(number, scale)).collect()
}

fn one(number: i32, scale: f64) -> Query {
    let text = query(number).expect("queries 1 to 22 exist");
    // `day (3)` says how many digits the standard wants; PostgreSQL does not take it.
    let text = text.replace(" day (3)", " day").replace("revenue:s", "revenue0");
    let parameters = parameters(number, scale);
    let numbered = parameters.iter().enumerate().rev();
    let text = numbered.fold(text, |t, (i, value)| t.replace(&format!(":{}", i + 1), value));
    let mut statements = text.split(';').map(str::trim).filter(|s| !s.is_empty());
    let setup = (number == 15).then(|| statements.next().expect("a view").to_owned());
    let sql = statements.next().expect("a query");
    let end = sql.rfind("order by").unwrap_or(sql.len());
    Query { number, setup, sql: sql[..end].trim().to_owned() }
}

/// The substitution parameters of the specification's validation runs, in order.
fn parameters(number: i32, scale: f64) -> Vec<String> {
    let list: &[&str] = match number {
        1 => &["90"],
        2 => &["15", "BRASS", "EUROPE"],
        3 => &["BUILDING", "1995-03-15"],
        4 => &["1993-07-01"],
        5 => &["ASIA", "1994-01-01"],
        6 => &["1994-01-01", "0.06", "24"],
        7 => &["FRANCE", "GERMANY"],
        8 => &["BRAZIL", "AMERICA", "ECONOMY ANODIZED STEEL"],
        9 => &["green"],
        10 => &["1993-10-01"],
        11 => return vec!["GERMANY".to_owned(), format!("{:.7}", 0.0001 / scale)],
        12 => &["MAIL", "SHIP", "1994-01-01"],
        13 => &["special", "requests"],
        14 => &["1995-09-01"],
        15 => &["1996-01-01"],
        16 => &["Brand#45", "MEDIUM POLISHED", "49", "14", "23", "45", "19", "3", "36", "9"],
        17 => &["Brand#23", "MED BOX"],
        18 => &["300"],
        19 => &["Brand#12", "Brand#23", "Brand#34", "1", "10", "20"],
        20 => &["forest", "1994-01-01", "CANADA"],
        21 => &["SAUDI ARABIA"],
        22 => &["13", "31", "23", "29", "30", "18", "17"],
        _ => &[],
    };
    list.iter().map(|value| (*value).to_owned()).collect()
}
