//! Which stream tables are due at a moment, in which order, and when to ask again.
//!
//! A stream table with a duration runs once in each period. It is looked at when its period has
//! passed even if nothing is known to have changed, so that its data timestamp moves on; and when
//! it has rested longer than that, the first commit that changed something makes it due at once.

use std::collections::BTreeMap;

use crate::{
    dag::Dag,
    schedule::{Effective, Micros, SECOND, Schedule},
    status::Status,
};

/// How often a stream table runs whose schedule is calculated and that nobody reads.
const UNREAD_SECONDS: i64 = 60;
/// The longest wait after a failure.
const LONGEST_BACK_OFF: i64 = 60;

/// What the scheduler knows about a stream table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its identity.
    pub id: i64,
    /// What the user chose.
    pub schedule: Schedule,
    /// Where it stands.
    pub status: Status,
    /// The failures since the last success.
    pub consecutive_errors: u32,
    /// The stream tables that it reads.
    pub reads: Vec<i64>,
    /// When it last ran because there may have been changes.
    pub ran_at: Micros,
    /// When it was last looked at, with or without changes.
    pub checked_at: Micros,
    /// Whether something was committed since then.
    pub may_have_changed: bool,
}

/// What to do now and when to come back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The stream tables to refresh, each after those that it reads.
    pub due: Vec<i64>,
    /// When the next one becomes due without any commit.
    pub wake_at: Option<Micros>,
    /// Whether a commit would make one due before that.
    pub wake_on_commit: bool,
}

/// Decides for all stream tables of a database at the time `now`.
pub fn decide(tables: &[Table], now: Micros) -> Decision {
    let effective = effective_schedules(tables);
    let by_id: BTreeMap<i64, &Table> = tables.iter().map(|it| (it.id, it)).collect();
    let mut decision = Decision::default();
    for id in in_order(tables) {
        let Some(table) = by_id.get(&id).filter(|it| it.status.is_scheduled()) else { continue };
        match due_at(table, &effective[&id]) {
            Some(moment) if moment <= now => decision.due.push(id),
            Some(moment) => {
                decision.wake_at = Some(decision.wake_at.map_or(moment, |it| it.min(moment)));
                let ripe =
                    due_at(&Table { may_have_changed: true, ..(*table).clone() }, &effective[&id]);
                decision.wake_on_commit |= ripe.is_some_and(|it| it <= now);
            }
            None => {}
        }
    }
    decision
}

/// The moment from which a table is due.
fn due_at(table: &Table, effective: &Effective) -> Option<Micros> {
    if table.consecutive_errors > 0 {
        let doublings = (table.consecutive_errors - 1).min(16);
        let seconds = (1i64 << doublings).min(LONGEST_BACK_OFF);
        return Some(table.checked_at.saturating_add(seconds * SECOND));
    }
    let base = if table.may_have_changed { table.ran_at } else { table.checked_at };
    let period = effective.every.map(|seconds| base.saturating_add(seconds.saturating_mul(SECOND)));
    let fire = effective.next_fire(table.checked_at);
    [period, fire].into_iter().flatten().min()
}

fn graph(tables: &[Table]) -> Dag<i64> {
    let mut dag = Dag::new();
    for table in tables {
        dag.add(table.id);
        for source in &table.reads {
            dag.add_edge(table.id, *source);
        }
    }
    dag
}

/// Sources first. Creation excludes cycles; should there be one all the same, ids decide.
fn in_order(tables: &[Table]) -> Vec<i64> {
    graph(tables).order().unwrap_or_else(|_| tables.iter().map(|it| it.id).collect())
}

/// The schedule of each table, with CALCULATED replaced by what its readers need.
pub fn effective_schedules(tables: &[Table]) -> BTreeMap<i64, Effective> {
    let mut effective: BTreeMap<i64, Effective> =
        tables.iter().map(|it| (it.id, Effective::from(&it.schedule))).collect();
    let by_id: BTreeMap<i64, &Table> = tables.iter().map(|it| (it.id, it)).collect();
    for id in in_order(tables).into_iter().rev() {
        let Some(table) = by_id.get(&id) else { continue };
        if effective[&id].is_empty() {
            effective.insert(id, Effective { every: Some(UNREAD_SECONDS), crons: Vec::new() });
        }
        let reader = effective[&id].clone();
        for source in &table.reads {
            if by_id.get(source).is_some_and(|it| it.schedule == Schedule::Calculated)
                && let Some(it) = effective.get_mut(source)
            {
                it.join(&reader);
            }
        }
    }
    effective
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Micros = 1_800_000_000 * SECOND;

    fn table(id: i64, schedule: &str, reads: &[i64]) -> Table {
        Table {
            id,
            schedule: schedule.parse().unwrap(),
            status: Status::Active,
            consecutive_errors: 0,
            reads: reads.to_vec(),
            ran_at: NOW - 100 * SECOND,
            checked_at: NOW - 100 * SECOND,
            may_have_changed: false,
        }
    }

    #[test]
    fn due_when_the_period_has_passed() {
        let decision = decide(&[table(1, "100s", &[]), table(2, "130s", &[])], NOW);
        assert_eq!(decision.due, [1]);
        assert_eq!(decision.wake_at, Some(NOW + 30 * SECOND));
        assert!(!decision.wake_on_commit);
    }

    #[test]
    fn sources_come_before_readers() {
        let tables = [table(1, "1m", &[3]), table(2, "1m", &[]), table(3, "1m", &[2])];
        assert_eq!(decide(&tables, NOW).due, [2, 3, 1]);
    }

    #[test]
    fn a_commit_hurries_only_a_rested_table() {
        let rested = Table { checked_at: NOW - SECOND, ..table(1, "1m", &[]) };
        let quiet = decide(std::slice::from_ref(&rested), NOW);
        assert_eq!((quiet.due.len(), quiet.wake_on_commit), (0, true));
        assert_eq!(quiet.wake_at, Some(NOW + 59 * SECOND));
        let changed = Table { may_have_changed: true, ..rested };
        assert_eq!(decide(&[changed], NOW).due, [1]);

        let busy = Table {
            ran_at: NOW - SECOND,
            checked_at: NOW - SECOND,
            may_have_changed: true,
            ..table(1, "1m", &[])
        };
        let decision = decide(&[busy], NOW);
        assert_eq!((decision.due.len(), decision.wake_on_commit), (0, false));
        assert_eq!(decision.wake_at, Some(NOW + 59 * SECOND));
    }

    #[test]
    fn calculated_follows_the_most_eager_reader_through_layers() {
        let tables = [
            table(1, "CALCULATED", &[]),
            table(2, "CALCULATED", &[1]),
            table(3, "10m", &[2]),
            table(4, "30s", &[2]),
            table(5, "@hourly", &[1]),
            table(6, "CALCULATED", &[]),
        ];
        let effective = effective_schedules(&tables);
        assert_eq!((effective[&1].every, effective[&1].crons.len()), (Some(30), 1));
        assert_eq!((effective[&2].every, effective[&2].crons.len()), (Some(30), 0));
        assert_eq!(effective[&6].every, Some(UNREAD_SECONDS));
    }

    #[test]
    fn a_reader_never_changes_an_explicit_schedule() {
        let effective = effective_schedules(&[table(1, "1h", &[]), table(2, "1s", &[1])]);
        assert_eq!(effective[&1].every, Some(3600));
    }

    #[test]
    fn a_cron_table_fires_once_for_each_time() {
        // NOW is a full hour.
        let mut hourly = table(1, "@hourly", &[]);
        assert_eq!(decide(std::slice::from_ref(&hourly), NOW).due, [1]);
        hourly.checked_at = NOW;
        let decision = decide(&[hourly], NOW);
        assert_eq!((decision.due.len(), decision.wake_at), (0, Some(NOW + 3600 * SECOND)));
    }

    #[test]
    fn suspended_and_erroneous_tables_rest() {
        for status in [Status::Suspended, Status::Error] {
            let resting = Table { status, ..table(1, "1s", &[]) };
            assert_eq!(decide(&[resting], NOW), Decision::default());
        }
    }

    #[test]
    fn failures_are_retried_with_growing_pauses() {
        for (errors, pause) in [(1, 1), (2, 2), (3, 4), (7, 60), (1000, 60)] {
            let failing =
                Table { consecutive_errors: errors, checked_at: NOW, ..table(1, "1h", &[]) };
            assert_eq!(decide(&[failing], NOW).wake_at, Some(NOW + pause * SECOND));
        }
    }

    #[test]
    fn a_cycle_does_not_stop_the_others() {
        let tables = [table(1, "1s", &[2]), table(2, "1s", &[1]), table(3, "1s", &[])];
        assert_eq!(decide(&tables, NOW).due.len(), 3);
    }
}
