//! The laws of the algebra, on random plans and random histories.
//!
//! A plan and a history are both read off random tapes of bytes.

mod histories;
mod operators;
mod plans;
mod tape;

use pgstream_ivm::{
    cancel::without_cancelled,
    derive::{at, delta},
    look_up::{indexed, with_indexes},
    model::{History, Row, Runner, ZSet, cancels, eval, run},
    plan::{Plan, Source, Version},
    sql::{full_select, identified_delta},
    stage::stage,
    testing::database,
};
use proptest::prelude::*;

use crate::{
    histories::{beginning, next, superset},
    plans::{stateless, whole},
    tape::{Tape, config, tape},
};

/// `SELECT row id, c0, …, w` as a Z-set, without the row ids.
fn weighted(rows: Vec<Row>) -> ZSet {
    let pair = |mut row: Row| {
        let weight = row.pop().expect("a weight").to_int();
        (row.split_off(1), weight)
    };
    rows.into_iter().map(pair).collect()
}

/// old + Δ = new when `changed` holds for a superset of what changed; and the printed SQL says the
/// same.
fn check_delta_law(plan: &Plan, history: &History, changed: &dyn Fn(&Source) -> bool) {
    let old = eval(&at(plan, Version::Old, changed), history);
    let new = eval(&at(plan, Version::New, changed), history);
    let derived = delta(plan, changed);
    let change = eval(&derived, history);
    assert_eq!(old.plus(&change), new, "\n{plan}\n{derived}");
    assert_eq!(derived.schema().len(), plan.schema().len());

    let database = database(history);
    let sql = full_select(plan, &[]);
    let rows: ZSet = run(&sql, &database).rows.into_iter().collect();
    assert_eq!(rows, new, "{sql}");
    let cancels = &mut |source: &Source, read: &[usize]| cancels(source, read, &database);
    let net = without_cancelled(derived.clone(), cancels);
    assert_eq!(eval(&net, history), change, "\n{derived}\n{net}");
    assert_eq!(net.schema().len(), plan.schema().len());

    let pipeline = stage(plan.clone());
    for is_indexed in [false, true] {
        for derived in [&derived, &net] {
            let derived = with_indexes(derived.clone(), &pipeline, &mut |_| is_indexed);
            let sql = identified_delta(&derived, plan.key().as_deref(), plan.schema().len(), &[]);
            assert_eq!(weighted(run(&sql, &database).rows), change, "{sql}");
        }
    }
}

/// The printed statements of the plan's stages keep each storage equal to recomputation, through
/// the changes on the tape.
fn check_stage_law(plan: &Plan, history: &[u8], extra: u8) {
    let mut tape = Tape::new(history);
    // Results must not depend on what is indexed.
    let is_indexed = history.last().is_some_and(|it| it % 2 == 1);
    let mut history = beginning(&mut tape);
    let mut pipeline = stage(plan.clone());
    indexed(&mut pipeline, &|_| is_indexed);
    let mut runner = Runner::new(pipeline, &database(&history));
    if is_indexed {
        runner = runner.indexed();
    }
    assert_eq!(runner.content(), eval(plan, &history), "\n{plan}");
    for _ in 0..3 {
        history = next(&mut tape, &history);
        let database = database(&history);
        let before = runner.content();
        let change = runner.refresh(&database, &superset(&history, extra));
        let content = runner.content();
        assert_eq!(content, eval(plan, &history), "\n{plan}");
        let visible = |row: &Row| runner.visible(row);
        let change: ZSet = change.iter().map(|(row, weight)| (visible(row), weight)).collect();
        assert_eq!(before.plus(&change), content, "\n{plan}");
        runner.check(&database);
    }
}

proptest! {
    #![proptest_config(config(192))]

    #[test]
    fn a_delta_takes_old_content_to_new(plan in tape(48), history in tape(160), extra in 0_u8..32) {
        let mut tape = Tape::new(&history);
        let history = beginning(&mut tape);
        let history = next(&mut tape, &history);
        check_delta_law(&stateless(&plan), &history, &superset(&history, extra));
    }

    #[test]
    fn a_pipeline_keeps_up_with_recomputation(
        plan in tape(64), history in tape(400), extra in 0_u8..32,
    ) {
        check_stage_law(&whole(&plan), &history, extra);
    }

    /// No two rows of a plan's content agree in its key.
    #[test]
    fn a_key_is_a_key(plan in tape(64), history in tape(160)) {
        let plan = whole(&plan);
        let history = beginning(&mut Tape::new(&history));
        if let Some(key) = plan.key() {
            prop_assert!(eval(&plan, &history).is_unique(&key), "{}", plan);
        }
    }
}
