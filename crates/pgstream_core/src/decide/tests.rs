use super::*;

const NOW: Micros = 1_800_000_000 * SECOND;

fn table(id: i64, schedule: &str, reads: &[i64]) -> Table {
    Table {
        id,
        schedule: schedule.parse().unwrap(),
        scheduled_at: 0,
        status: Status::Active,
        consecutive_errors: 0,
        reads: reads.to_vec(),
        sources: Vec::new(),
    }
}

/// Ran and was looked at so many seconds ago.
fn ran(seconds: i64) -> State {
    State {
        ran_at: NOW - seconds * SECOND,
        checked_at: NOW - seconds * SECOND,
        may_have_changed: false,
        is_settled: false,
        detours: 0,
        took: 0,
        is_running: false,
    }
}

fn changed(seconds: i64) -> State {
    State { may_have_changed: true, ..ran(seconds) }
}

/// Decides with the state of each table given by its id.
fn decide(tables: &[Table], state: impl Fn(i64) -> State) -> Decision {
    let schedules = Schedules::new(tables.to_vec());
    let states: Vec<State> = schedules.tables().iter().map(|it| state(it.id)).collect();
    schedules.decide(&states, NOW)
}

fn units(decision: &Decision) -> Vec<Vec<i64>> {
    decision.units.iter().map(|it| it.tables.clone()).collect()
}

fn effective(tables: &[Table], id: i64) -> Effective {
    let schedules = Schedules::new(tables.to_vec());
    let position = schedules.tables().iter().position(|it| it.id == id).unwrap();
    schedules.effective(position).clone()
}

#[test]
fn due_when_the_period_has_passed() {
    let decision = decide(&[table(1, "100s", &[]), table(2, "130s", &[])], |_| ran(100));
    assert_eq!(units(&decision), [[1]]);
    assert_eq!(decision.wake_at, Some(NOW + 30 * SECOND));
    assert_eq!(decision.wake_on_commit, [0; 0]);
}

#[test]
fn sources_come_before_readers() {
    let tables = [table(1, "1m", &[3]), table(2, "1m", &[]), table(3, "1m", &[2])];
    assert_eq!(units(&decide(&tables, |_| ran(100))), [[2, 3, 1]]);
}

#[test]
fn tables_without_a_connection_are_units_of_their_own_the_longest_due_first() {
    let tables = [table(1, "1m", &[]), table(2, "1m", &[]), table(3, "1m", &[])];
    let decision = decide(&tables, |id| ran(100 + id % 3));
    assert_eq!(units(&decision), [[2], [1], [3]]);
    assert_eq!(decision.units[0].since, NOW - 42 * SECOND);
}

#[test]
fn a_diamond_is_one_unit() {
    let tables = [
        table(1, "1m", &[]),
        table(2, "1m", &[1]),
        table(3, "1m", &[1]),
        table(4, "1m", &[2, 3]),
        table(5, "1m", &[]),
    ];
    assert_eq!(units(&decide(&tables, |_| ran(100))), [vec![1, 2, 3, 4], vec![5]]);
}

#[test]
fn tables_of_a_component_with_the_same_schedule_keep_one_clock() {
    // 2 and 3 are connected by their reader only, which is not due.
    let tables = [table(2, "1m", &[]), table(3, "1m", &[]), table(4, "1h", &[2, 3])];
    let decision = decide(&tables, |id| if id == 2 { ran(60) } else { ran(10) });
    assert_eq!(units(&decision), [[2, 3]]);
    assert_eq!(decision.wake_at, Some(NOW + 3590 * SECOND));
}

#[test]
fn a_table_brings_along_the_calculated_ones_that_it_reads() {
    let tables = [
        table(1, "CALCULATED", &[]),
        table(2, "CALCULATED", &[1]),
        table(3, "2m", &[2]),
        table(4, "5m", &[2]),
        table(5, "1h", &[]),
        table(6, "5m", &[5]),
    ];
    let decision = decide(&tables, |id| if id == 4 { ran(300) } else { ran(30) });
    // 3 has the schedule that follows from it for 1 and 2; 5 has its own.
    assert_eq!(units(&decision), [[1, 2, 3, 4]]);
}

#[test]
fn whoever_is_refreshed_now_is_waited_for() {
    let tables = [table(1, "1m", &[]), table(2, "1m", &[1]), table(3, "1m", &[])];
    let state = |id| State { is_running: id == 1, ..ran(100) };
    let decision = decide(&tables, state);
    assert_eq!((units(&decision), decision.wake_at), (vec![vec![3]], Some(NOW + SECOND)));
}

#[test]
fn a_slow_group_does_not_hold_up_faster_ones() {
    let tables = [table(1, "1m", &[]), table(2, "1m", &[1]), table(3, "1h", &[1])];
    let took = |seconds| move |id| State { took: seconds * SECOND * (id / 3), ..ran(3600) };
    assert_eq!(units(&decide(&tables, took(60))), [vec![1, 2, 3]]);
    assert_eq!(units(&decide(&tables, took(61))), [vec![1, 2], vec![3]]);
}

#[test]
fn a_slow_diamond_stays_together() {
    let tables = [table(1, "1m", &[]), table(2, "1m", &[1]), table(3, "1m", &[1])];
    let decision = decide(&tables, |id| State { took: 100 * SECOND * (id / 3), ..ran(3600) });
    assert_eq!(units(&decision), [[1, 2, 3]]);
}

#[test]
fn a_commit_hurries_only_a_rested_table() {
    let rested = |may_have_changed| {
        move |_| State { checked_at: NOW - SECOND, may_have_changed, ..ran(100) }
    };
    let quiet = decide(&[table(1, "1m", &[])], rested(false));
    assert_eq!((units(&quiet).len(), quiet.wake_on_commit), (0, vec![1]));
    assert_eq!(quiet.wake_at, Some(NOW + 59 * SECOND));
    assert_eq!(units(&decide(&[table(1, "1m", &[])], rested(true))), [[1]]);

    let busy = decide(&[table(1, "1m", &[])], |_| changed(1));
    assert_eq!((units(&busy).len(), busy.wake_on_commit.len()), (0, 0));
    assert_eq!(busy.wake_at, Some(NOW + 59 * SECOND));
}

#[test]
fn what_is_settled_is_idle_unless_a_table_of_its_unit_is_not() {
    let tables = [table(1, "1m", &[]), table(2, "1m", &[1]), table(3, "1m", &[])];
    let decision = decide(&tables, |id| State { is_settled: id != 1, ..ran(100) });
    assert_eq!((units(&decision), decision.idle), (vec![vec![1, 2]], vec![3]));
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
    let of = |id| effective(&tables, id);
    assert_eq!((of(1).every, of(1).crons.len()), (Some(30), 1));
    assert_eq!((of(2).every, of(2).crons.len()), (Some(30), 0));
    assert_eq!(of(6).every, Some(UNREAD_SECONDS));
}

#[test]
fn a_reader_never_changes_an_explicit_schedule() {
    let tables = [table(1, "1h", &[]), table(2, "1s", &[1])];
    assert_eq!(effective(&tables, 1).every, Some(3600));
    assert_eq!(units(&decide(&tables, |_| ran(100))), [[2]]);
}

#[test]
fn a_cron_table_fires_once_for_each_time() {
    // NOW is a full hour.
    let hourly = [table(1, "@hourly", &[])];
    assert_eq!(units(&decide(&hourly, |_| ran(100))), [[1]]);
    let fired = decide(&hourly, |_| ran(0));
    assert_eq!((fired.units.len(), fired.wake_at), (0, Some(NOW + 3600 * SECOND)));
}

#[test]
fn a_cron_table_catches_up_once() {
    // Five fire times were missed.
    let hourly = [table(1, "@hourly", &[])];
    let decision = decide(&hourly, |_| ran(5 * 3600 + 100));
    assert_eq!(units(&decision), [[1]]);
    assert_eq!(decision.units[0].since, NOW - 5 * 3600 * SECOND);
    assert_eq!(decide(&hourly, |_| ran(0)).units, []);
}

#[test]
fn a_cron_pattern_does_not_fire_for_times_before_it_was_chosen() {
    let hourly = Table { scheduled_at: NOW - 1800 * SECOND, ..table(1, "30 * * * *", &[]) };
    let decision = decide(&[hourly], |_| ran(86_400));
    assert_eq!((decision.units.len(), decision.wake_at), (0, Some(NOW + 1800 * SECOND)));
}

#[test]
fn suspended_and_erroneous_tables_rest() {
    for status in [Status::Suspended, Status::Error] {
        let resting = Table { status, ..table(1, "1s", &[]) };
        assert_eq!(decide(&[resting], |_| ran(100)), Decision::default());
        // And nobody brings them along.
        let source = Table { status, ..table(1, "CALCULATED", &[]) };
        assert_eq!(units(&decide(&[source, table(2, "1s", &[1])], |_| ran(100))), [[2]]);
    }
}

#[test]
fn failures_are_retried_with_growing_pauses() {
    for (errors, pause) in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60)] {
        let failing = Table { consecutive_errors: errors, ..table(1, "1h", &[]) };
        assert_eq!(decide(&[failing], |_| ran(0)).wake_at, Some(NOW + pause * SECOND));
    }
    for (detours, pause) in [(1, 1), (2, 2), (4, 8), (1000, 8)] {
        let decision = decide(&[table(1, "1h", &[])], |_| State { detours, ..ran(0) });
        assert_eq!(decision.wake_at, Some(NOW + pause * SECOND));
    }
}

#[test]
fn a_failing_table_does_not_hold_up_its_group() {
    let failing = Table { consecutive_errors: 5, ..table(1, "1s", &[]) };
    let tables = [failing, table(2, "1s", &[1]), table(3, "1s", &[1])];
    assert_eq!(units(&decide(&tables, |_| ran(10))), [[2, 3]]);
}

/// One that reads these stream tables, which are among these relations.
fn reading(id: i64, reads: &[i64], sources: &[u32]) -> Table {
    Table { reads: reads.to_vec(), ..over(id, "1s", sources) }
}

fn failing(table: Table) -> Table {
    Table { consecutive_errors: 5, ..table }
}

#[test]
fn the_tip_of_a_diamond_waits_for_a_failing_side() {
    // 1 and 2 read the base table 91; the change buffers of 1, 2 ... are 1, 2 ...
    let base = [failing(reading(1, &[], &[91])), reading(2, &[], &[91, 92])];
    let decided = |more: &[Table]| units(&decide(&[&base, more].concat(), |_| ran(10)));
    // A reader of the failing one that sees no other side of it goes on.
    assert_eq!(decided(&[reading(3, &[1], &[1, 93])]), [[2, 3]]);
    assert_eq!(decided(&[reading(3, &[1, 2], &[1, 2])]), [[2]]);
    assert_eq!(decided(&[reading(3, &[1], &[1, 91])]), [[2]]);
    // So does what reads the tip, and another way to the base table.
    let tip = reading(3, &[1, 2], &[1, 2]);
    assert_eq!(decided(&[tip.clone(), reading(4, &[3], &[3, 91])]), [[2]]);
    assert_eq!(decided(&[tip.clone(), reading(4, &[3], &[3, 93])]), [[2, 4]]);
    // A tip that waits is behind with all that it reads.
    let other = reading(5, &[], &[94]);
    let tip_and_more = reading(3, &[1, 2], &[1, 2, 94]);
    let top = reading(6, &[3, 5], &[3, 5]);
    assert_eq!(decided(&[tip_and_more, other, top]), [[2, 5]]);
    // Both sides read one that fails: they agree.
    let (left, right) = (reading(3, &[1], &[1]), reading(4, &[1], &[1]));
    assert_eq!(decided(&[left, right, reading(5, &[3, 4], &[3, 4])]), [[2, 3, 4, 5]]);
    // When it is due again, they are refreshed together.
    let due = |_| State { detours: 1, ..ran(100) };
    assert_eq!(units(&decide(&[base[0].clone(), base[1].clone(), tip.clone()], due)), [[1, 2, 3]]);
    // Nobody waits for what rests until somebody does something.
    let resting = Table { status: Status::Suspended, ..base[0].clone() };
    assert_eq!(units(&decide(&[resting, base[1].clone(), tip], |_| ran(10))), [[2, 3]]);
}

#[test]
fn a_tip_waits_for_sides_that_are_tried_again_in_another_unit() {
    let slow = |id: i64| Table { schedule: "3s".parse().unwrap(), ..reading(id, &[], &[91]) };
    let (left, right) = (slow(1), slow(2));
    let tip = reading(3, &[1, 2], &[1, 2]);
    let state = |detours: u32| {
        move |id| State { took: 2 * SECOND, detours: detours * u32::from(id == 1), ..ran(100) }
    };
    let decided = |tables: &[Table], detours| units(&decide(tables, state(detours)));
    let all = [left.clone(), right.clone(), tip.clone()];
    assert_eq!(decided(&all, 0), [vec![3], vec![1, 2]]);
    assert_eq!(decided(&all, 1), [[1, 2]]);
    assert_eq!(decided(&[failing(left), right, tip], 0), [[1, 2]]);
}

#[test]
fn a_slow_group_that_would_be_torn_is_not_taken_apart() {
    let calculated = |id| Table { schedule: Schedule::Calculated, ..reading(id, &[], &[91]) };
    let (left, right) = (calculated(1), calculated(2));
    let slowly = |it: Table| Table { schedule: "4s".parse().unwrap(), ..it };
    let tip = slowly(reading(3, &[1, 2], &[1, 2]));
    // Another reader makes one side run each second; the other one takes longer.
    let reader = reading(4, &[1], &[1]);
    let state = |id| State { took: 2 * SECOND * i64::from(id == 2), ..ran(100) };
    let decided = |tables: &[Table]| units(&decide(tables, state));
    assert_eq!(decided(&[left.clone(), right.clone(), tip, reader.clone()]), [[1, 2, 3, 4]]);
    // It sees no more than one side.
    let (other, pair) = (slowly(reading(3, &[2], &[2])), [left, right]);
    assert_eq!(decided(&[&pair[..], &[other, reader]].concat()), [[1, 4], [2, 3]]);
}

#[test]
fn a_clock_that_was_set_back_stops_nothing() {
    let decision = decide(&[table(1, "1m", &[])], |_| ran(-86_400));
    assert_eq!(decision.wake_at, Some(NOW + 60 * SECOND));
}

#[test]
fn a_cycle_does_not_stop_the_others() {
    let tables = [table(1, "1s", &[2]), table(2, "1s", &[1]), table(3, "1s", &[])];
    assert_eq!(units(&decide(&tables, |_| ran(100))), [vec![1, 2], vec![3]]);
}

#[test]
fn fire_times_are_not_computed_again_while_nothing_happens() {
    let schedules = Schedules::new(vec![table(1, "@hourly", &[]), table(2, "1m", &[])]);
    let states = vec![ran(1); 2];
    let first = schedules.decide(&states, NOW);
    schedules.fires[0].set((states[0].checked_at, Some(NOW + SECOND)));
    assert_eq!(schedules.decide(&states, NOW).wake_at, Some(NOW + SECOND));
    assert_eq!(schedules.decide(&[ran(2), ran(1)], NOW), first);
}

#[test]
fn a_component_that_is_too_large_is_refreshed_in_parts() {
    let tables: Vec<Table> =
        (0..3000).map(|id| table(id, "1m", if id == 0 { &[] } else { &[0] })).collect();
    let sizes = |decision: &Decision| -> Vec<usize> {
        decision.units.iter().map(|it| it.tables.len()).collect()
    };
    let first = decide(&tables, |_| ran(60));
    assert_eq!(sizes(&first), [1024, 1024, 952]);
    // The first part is done and the others wait for a worker.
    let done = &first.units[0].tables;
    let second = decide(&tables, |id| ran(if done.contains(&id) { 5 } else { 65 }));
    assert_eq!(second.units, first.units[1..].iter().map(later).collect::<Vec<_>>());
}

fn later(unit: &Unit) -> Unit {
    Unit { since: unit.since - 5 * SECOND, ..unit.clone() }
}

/// One that reads these relations, and no stream table.
fn over(id: i64, schedule: &str, sources: &[u32]) -> Table {
    Table { sources: sources.to_vec(), ..table(id, schedule, &[]) }
}

#[test]
fn quick_tables_with_a_common_source_are_refreshed_together() {
    // 1, 2, 5 and 6 by a chain of sources; 3 by its reader.
    let tables = [
        over(1, "1m", &[7]),
        over(2, "1m", &[7, 8]),
        over(3, "1m", &[9]),
        over(5, "1m", &[8]),
        Table { sources: vec![8], ..table(6, "1m", &[3]) },
    ];
    assert_eq!(units(&decide(&tables, |_| ran(100))), [[1, 2, 3, 5, 6]]);
    // They keep one clock.
    let decision = decide(&tables[..3], |id| if id == 2 { ran(60) } else { ran(10) });
    assert_eq!(units(&decision), [[1, 2]]);
    assert_eq!(decision.wake_at, Some(NOW + 50 * SECOND));
    // Other schedules have other clocks.
    let tables = [over(1, "1m", &[7]), over(2, "2m", &[7])];
    assert_eq!(units(&decide(&tables, |_| ran(60))), [[1]]);
    assert_eq!(units(&decide(&tables, |_| ran(120))), [[1, 2]]);
}

#[test]
fn slow_tables_with_a_common_source_are_refreshed_side_by_side() {
    let tables = [over(1, "1m", &[7]), over(2, "1m", &[7])];
    let took = |seconds| move |_| State { took: seconds * SECOND, ..ran(100) };
    assert_eq!(units(&decide(&tables, took(7))), [[1, 2]]);
    assert_eq!(units(&decide(&tables, took(8))), [[1], [2]]);
    // One that is not due is not brought along, and has its own time.
    let decision = decide(&tables, |id| State { ran_at: NOW, ..took(8)(id) });
    assert_eq!(units(&decision), [[1], [2]]);
    let decision = decide(&tables, |id| State { took: 8 * SECOND, ..ran(id * 40) });
    assert_eq!((units(&decision), decision.wake_at), (vec![vec![2]], Some(NOW + 20 * SECOND)));
}

#[test]
fn what_fails_or_rests_leaves_the_rest_of_its_family_alone() {
    let failing = Table { consecutive_errors: 1, ..over(1, "1m", &[7]) };
    let tables = [failing, over(2, "1m", &[7]), over(3, "1m", &[7]), over(4, "1m", &[7])];
    let state = |id| State { is_settled: id == 4, ..ran(100) };
    let decision = decide(&tables, state);
    assert_eq!((units(&decision), decision.idle), (vec![vec![1], vec![2, 3]], vec![4]));
    let decision = decide(&tables, |id| State { detours: u32::from(id == 3), ..state(id) });
    assert_eq!(units(&decision), [[1], [3], [2]]);
    // One that is refreshed is waited for, but not for long.
    let running = |took| {
        move |id| State {
            is_running: id == 2,
            took: took * SECOND * i64::from(id == 2),
            ..ran(100)
        }
    };
    assert_eq!(units(&decide(&tables, running(1))), [[1]]);
    assert_eq!(units(&decide(&tables, running(16))), [[1], [3], [4]]);
}

#[test]
fn a_large_family_is_refreshed_side_by_side() {
    let tables = |count: i64| -> Vec<Table> { (0..count).map(|it| over(it, "1m", &[7])).collect() };
    let most = i64::try_from(MOST_RELATIVES).unwrap();
    assert_eq!(decide(&tables(most), |_| ran(100)).units.len(), 1);
    assert_eq!(decide(&tables(most + 1), |_| ran(100)).units.len(), MOST_RELATIVES + 1);
}
