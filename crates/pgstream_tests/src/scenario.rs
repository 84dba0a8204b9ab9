//! Scenarios: tables, a query, and changes.

use crate::{
    database::Database,
    oracle::{self, Comparison},
    session::Session,
};

/// A query over some tables, and what happens to the tables.
#[derive(Clone, Copy, Debug)]
pub struct Scenario<'a> {
    /// Statements that set the tables up, with their first rows if it matters.
    pub tables: &'a str,
    pub query: &'a str,
    /// Each is one transaction, followed by a refresh.
    pub changes: &'a [&'a str],
}

/// Fails unless the stream table equals its query at creation and after each change, every
/// refresh being differential (after TRUNCATE it may be full).
///
/// A second stream table over the same query is refreshed once, after all changes.
#[track_caller]
pub fn check(scenario: Scenario<'_>) {
    run(scenario, Comparison::Text);
}

/// As [`check`], but rows are compared by their types' `=`: for a query that leaves open which
/// of several equal values it returns.
#[track_caller]
pub fn check_values(scenario: Scenario<'_>) {
    run(scenario, Comparison::Value);
}

/// As [`check`], for what may be refused today with 0A000, but may not be wrong.
#[track_caller]
pub fn check_unless_refused(scenario: Scenario<'_>) {
    let database = Database::new();
    let mut session = database.session();
    session.run(scenario.tables);
    match session.try_create("st", scenario.query) {
        Ok(()) => check(scenario),
        Err(error) => assert_eq!(error.code, "0A000", "{error}"),
    }
}

#[track_caller]
fn run(scenario: Scenario<'_>, comparison: Comparison) {
    let database = Database::new();
    let mut session = database.session();
    session.run(scenario.tables);
    let every = Watched::create(&mut session, "st", scenario.query, comparison);
    let last = Watched::create(&mut session, "st_last", scenario.query, comparison);
    for change in scenario.changes {
        session.run(change);
        every.refresh_and_compare(&mut session, change);
    }
    last.refresh_and_compare(&mut session, &scenario.changes.join(";\n"));
    every.refresh_without_changes(&mut session);
}

/// A stream table together with its query.
#[derive(Debug)]
pub struct Watched {
    name: String,
    query: String,
    comparison: Comparison,
}

impl Watched {
    /// Creates it and compares what creation put into it.
    #[track_caller]
    pub fn create(session: &mut Session, name: &str, query: &str, comparison: Comparison) -> Self {
        session.create(name, query);
        let watched = Self { name: name.to_owned(), query: query.to_owned(), comparison };
        watched.compare(session, "(creation)");
        watched
    }

    #[track_caller]
    pub fn refresh_and_compare(&self, session: &mut Session, change: &str) {
        let before = oracle::last_refresh_id(session, &self.name).expect("the history is readable");
        session.refresh(&self.name);
        self.compare(session, change);
        let history =
            oracle::history_since(session, &self.name, before).expect("the history is readable");
        let may_be_full = change.to_uppercase().contains("TRUNCATE");
        for row in &history {
            let expected = match row.action.as_str() {
                "DIFFERENTIAL" | "NO_DATA" => true,
                "FULL" | "REINITIALIZE" => may_be_full,
                _ => false,
            };
            assert!(
                expected && row.status == "COMPLETED",
                "after\n{change}\nthe refresh of {} was {row:?}",
                self.name
            );
        }
        assert!(history.len() <= 1, "one refresh left {} history rows", history.len());
    }

    /// A refresh when nothing changed does nothing.
    #[track_caller]
    fn refresh_without_changes(&self, session: &mut Session) {
        let before = oracle::last_refresh_id(session, &self.name).expect("the history is readable");
        session.refresh(&self.name);
        self.compare(session, "(nothing)");
        let history =
            oracle::history_since(session, &self.name, before).expect("the history is readable");
        assert!(
            history.iter().all(|row| row.action == "NO_DATA"),
            "a refresh without changes was {history:?}"
        );
    }

    #[track_caller]
    pub fn compare(&self, session: &mut Session, change: &str) {
        match oracle::difference(session, &self.name, &self.query, self.comparison) {
            Ok(None) => {}
            Ok(Some(difference)) => panic!(
                "{} differs from its query\n\n{}\n\nafter\n\n{change}\n\n{difference}\n{}",
                self.name,
                self.query,
                oracle::explanation(session, &self.name)
            ),
            Err(error) => panic!("comparing {} after {change}: {error}", self.name),
        }
    }
}
