//! The laws for each operator by itself and in the shapes that are easy to get wrong.

use pgstream_ivm::{
    model::{Content, History, Row, Runner, Value, ZSet, eval},
    plan::{Plan, Source},
    stage::stage,
    testing::{
        TABLES, aggregate, cross_join, database, expand, filter, full_join, join, left_join, mark,
        project, recursive, recursive_set, scan, scan_columns, union_all, window,
    },
};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::{
    check_delta_law, check_stage_law,
    histories::{beginning, next, superset},
    tape::{Tape, config, tape},
};

/// Both laws, on random histories.
fn check(plan: &Plan) {
    let histories = (tape(400), any::<u8>());
    let law = |(bytes, extra): (Vec<u8>, u8)| {
        check_stage_law(plan, &bytes, extra);
        let mut tape = Tape::new(&bytes);
        let history =
            next(&mut tape, &next(&mut Tape::new(&bytes), &beginning(&mut Tape::new(&bytes))));
        let changed = superset(&history, extra);
        for stage in stage(plan.clone()).stages {
            if stage.sources().iter().all(|it| matches!(it, Source::Table { .. })) {
                check_delta_law(&stage.body, &history, &changed);
            }
        }
        Ok(())
    };
    TestRunner::new(config(32))
        .run(&histories, law)
        .unwrap_or_else(|error| panic!("{error}\n{plan}"));
}

#[test]
fn linear_operators() {
    check(&scan("a"));
    check(&scan_columns("a", &[1]));
    check(&scan_columns("a", &[]));
    check(&filter(scan("a"), "#0 = 1 OR #1 IS NULL"));
    check(&filter(scan("a"), "NOT (#0 = #1)"));
    check(&project(scan("a"), &["#1", "#0 + #1", "#0", "- #0"]));
    check(&project(filter(project(scan("a"), &["- #0", "#1"]), "#1 - #0 > 1"), &["#1 - #0"]));
    check(&union_all([scan("a"), scan("a")]));
    check(&union_all([scan("a"), project(scan("c"), &["#0", "1"]), filter(scan("a"), "#0 = 1")]));
    check(&Plan::Unit);
    check(&Plan::Empty(scan("a").schema()));
    check(&project(Plan::Empty(scan("a").schema()), &["#0 + 1", "#1"]));
}

#[test]
fn joins() {
    check(&join(scan("a"), scan("b"), "#0 = #2"));
    check(&join(scan("a"), scan("a"), "#0 = #3"));
    check(&join(scan("a"), scan("d"), "#0 < #2 OR #1 IS NULL"));
    check(&cross_join(scan("a"), scan("c")));
    check(&cross_join(scan("a"), Plan::Unit));
    check(&cross_join(Plan::Empty(scan("b").schema()), scan("a")));
    check(&join(join(scan("a"), scan("b"), "#0 = #2"), scan("c"), "#1 = #4"));
    check(&join(scan("a"), join(scan("b"), scan("a"), "#0 = #2"), "#1 = #5"));
    check(&join(join(scan("a"), scan("a"), "#0 = #2"), scan("a"), "#1 = #4"));
    let unions = || union_all([scan("a"), project(scan("d"), &["#0", "#0"])]);
    check(&join(unions(), scan("b"), "#0 = #2"));
    check(&join(unions(), unions(), "#0 = #3"));
    check(&union_all([
        join(scan("a"), scan("c"), "#0 = #2"),
        join(scan("a"), scan("c"), "#1 = #2"),
    ]));
    let computed = project(join(scan("a"), scan("c"), "#0 = #2"), &["#0 + #2", "#3", "#1"]);
    check(&filter(join(computed, scan("d"), "#0 = #3 + 1"), "#2 IS NULL OR #2 > 0"));
}

/// The numbers from 1 to column `#0`.
fn series(input: Plan, outer: bool) -> Plan {
    expand(input, "SELECT i1.x FROM generate_series(1, #0) AS i1(x)", &["x"], outer)
}

#[test]
fn expansions() {
    for outer in [false, true] {
        let series = |input| series(input, outer);
        check(&series(scan("a")));
        check(&filter(series(filter(scan("a"), "#0 < 3")), "#2 = 1 OR #2 IS NULL"));
        check(&series(join(scan("a"), scan("b"), "#0 = #2")));
        check(&join(series(scan("a")), scan("b"), "#2 = #3"));
        check(&join(scan("b"), series(scan("a")), "#0 = #4"));
        check(&series(series(scan("a"))));
        check(&series(project(scan("a"), &["#0 + 1", "#1"])));
        check(&series(union_all([scan("a"), scan("a")])));
        check(&series(scan("a").distinct()));
        check(&aggregate(series(scan("a")), &[2], &["count(*)", "sum(#1)"]));
        check(&aggregate(series(join(scan("a"), scan("a"), "#0 = #2")), &[4], &["max(#1)"]));
        let condition = "SELECT i1.x FROM generate_series(1, #0) AS i1(x) WHERE i1.x = #1";
        check(&expand(scan("a"), condition, &["x"], outer));
        check(&expand(scan("a"), "SELECT FROM generate_series(1, #0) AS i1(x)", &[], outer));
        let constant = "SELECT i1.x FROM generate_series(1, 2) AS i1(x)";
        check(&cross_join(scan("a"), expand(Plan::Unit, constant, &["x"], outer)));
        check(&expand(cross_join(Plan::Unit, scan("a")), constant, &["x"], outer));
    }
}

#[test]
fn set_operations_by_counting() {
    let sides = || {
        union_all([
            project(scan("a"), &["#0", "#1", "1", "0"]),
            project(scan("d"), &["#0", "#0", "0", "1"]),
        ])
    };
    let counts = || aggregate(sides(), &[0, 1], &["sum(#2)", "sum(#3)"]);
    check(&project(filter(counts(), "#2 > 0 AND #3 > 0"), &["#0", "#1"]));
    check(&project(filter(counts(), "#2 > 0 AND #3 = 0"), &["#0", "#1"]));
    for copies in ["LEAST(#2, #3)", "#2 - #3"] {
        let item = format!("SELECT FROM generate_series(1, {copies}) AS i1(x)");
        check(&project(expand(counts(), &item, &[], false), &["#0", "#1"]));
    }
}

#[test]
fn aggregates_over_one_table() {
    for input in ["a", "b", "c", "d"] {
        let numeric = if input == "c" { "#0" } else { "#1" };
        let calls = [
            "count(*)".to_owned(),
            "count(#1)".to_owned(),
            "count(#1) FILTER (WHERE #0 = 1 OR #0 IS NULL)".to_owned(),
            format!("sum({numeric})"),
            format!("sum(- {numeric}) FILTER (WHERE #0 > 1)"),
            format!("avg({numeric})"),
            format!("avg({numeric}) FILTER (WHERE #0 <> 1)"),
            "min(#0)".to_owned(),
            "max(#0) FILTER (WHERE #0 < 2)".to_owned(),
            "count(DISTINCT #1)".to_owned(),
        ];
        let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
        check(&aggregate(scan(input), &[0], &calls));
        check(&aggregate(scan(input), &[], &calls));
    }
    check(&aggregate(scan("a"), &[1, 0], &["count(*)"]));
    // The change is not consolidated on these columns: rows that differ elsewhere come and go.
    check(&aggregate(scan_columns("a", &[0]), &[], &["min(#0)", "max(#0)"]));
    let either = union_all([scan_columns("a", &[0]), scan_columns("a", &[1])]);
    check(&aggregate(either, &[], &["min(#0)", "max(#0)"]));
    check(&aggregate(scan("c"), &[1], &["count(*)", "max(#0)"]));
}

/// One aggregate at a time, so that no other one causes the group to be evaluated again.
#[test]
fn each_aggregate_alone() {
    let calls = [
        "sum(#1)",
        "avg(#1)",
        "count(#1)",
        "min(#0)",
        "max(#0)",
        "sum(#1) FILTER (WHERE #0 = 1)",
        "count(DISTINCT #1)",
        "min(1)",
    ];
    for call in calls {
        check(&aggregate(scan("b"), &[], &[call]));
        check(&aggregate(scan("b"), &[0], &[call]));
        check(&aggregate(scan("d"), &[0], &[call]));
    }
    check(&aggregate(
        filter(scan("b"), "NOT #1 IN ('NaN', 'Infinity', '-Infinity')"),
        &[],
        &["sum(#1)", "avg(#1)"],
    ));
}

#[test]
fn aggregates_of_distinct_values() {
    let several = [
        "count(DISTINCT #1)",
        "count(*)",
        "sum(DISTINCT #0) FILTER (WHERE #1 > 0)",
        "count(DISTINCT #1) FILTER (WHERE #0 = 1)",
        "avg(DISTINCT #1)",
        "sum(#1)",
        "count(#0) FILTER (WHERE #1 IS NULL)",
        "min(#1)",
        "max(DISTINCT #0) FILTER (WHERE #1 < 2)",
        "avg(#0)",
        "count(DISTINCT #0)",
    ];
    for keys in [&[][..], &[0], &[1], &[0, 0]] {
        check(&aggregate(scan("a"), keys, &several));
        check(&aggregate(scan("a"), keys, &several[..1]));
        check(&aggregate(scan("a"), keys, &several[2..3]));
        check(&aggregate(scan("a"), keys, &["bool_or(#1 > 1)", "count(DISTINCT #0)"]));
    }
    check(&aggregate(scan("d"), &[0], &["sum(DISTINCT #1)", "avg(DISTINCT #1)", "sum(#1)"]));
    check(&aggregate(scan("c"), &[0], &["count(DISTINCT #1)", "max(#1)"]));
    check(&aggregate(scan("c"), &[1], &["sum(DISTINCT #0)"]));
    let pairs = || join(scan("a"), scan("a"), "#0 = #2");
    check(&aggregate(pairs(), &[1], &["count(DISTINCT #3)", "count(DISTINCT #0)", "count(*)"]));
    let outer = left_join(scan("a"), scan("b"), "#0 = #2");
    check(&aggregate(outer, &[0], &["count(DISTINCT #2)", "max(#1)", "count(DISTINCT #1)"]));
    let either = || union_all([scan("a"), scan("a")]);
    check(&aggregate(either(), &[0], &["count(DISTINCT #1)", "count(#1)"]));
    let inner = aggregate(either(), &[0], &["count(DISTINCT #1)", "max(#1)"]);
    check(&aggregate(inner, &[1], &["sum(DISTINCT #2)", "count(*)"]));
}

#[test]
fn truths_are_counted() {
    let calls = [
        "bool_and(#1 > 0)",
        "bool_or(#1 > 0)",
        "bool_or(#0 IS NULL)",
        "bool_and(#1 = #0) FILTER (WHERE #1 > 0)",
        "bool_or(DISTINCT #1 = #0) FILTER (WHERE NOT #0 IS NULL)",
    ];
    for call in calls {
        check(&aggregate(scan("a"), &[], &[call]));
        check(&aggregate(scan("a"), &[0], &[call]));
        check(&aggregate(scan("d"), &[0], &[call]));
    }
    check(&aggregate(scan("a"), &[1], &calls));
    check(&aggregate(join(scan("a"), scan("a"), "#0 = #2"), &[1], &calls));
}

#[test]
fn aggregates_over_joins() {
    let pairs = || join(scan("a"), scan("a"), "#0 = #2");
    check(&aggregate(pairs(), &[1], &["min(#3)", "max(#3)"]));
    check(&aggregate(pairs(), &[], &["min(#3)", "count(#1)"]));
    check(&aggregate(pairs(), &[], &["min(1)"]));
    check(&aggregate(pairs(), &[0], &["max(#1 + #3)", "sum(#1)"]));
    check(&aggregate(join(scan("a"), scan("b"), "#0 = #2"), &[1], &["sum(#3)", "count(*)"]));
    check(&aggregate(join(scan("a"), scan("c"), "#0 = #2"), &[3], &["max(#1)", "min(#2)"]));
    let either = union_all([scan("a"), scan("a")]);
    check(&aggregate(join(either, scan("a"), "#1 = #3"), &[0], &["min(#2)", "avg(#2)"]));
}

#[test]
fn distinct() {
    check(&scan("a").distinct());
    check(&project(scan("a"), &["#1"]).distinct());
    check(&project(join(scan("a"), scan("a"), "#0 = #2"), &["#1", "#3"]).distinct());
    check(&union_all([scan("a"), scan("a")]).distinct());
}

#[test]
fn recursion() {
    // All steps are bounded, so that there is an end whatever the data.
    check(&recursive(scan("a"), |it| filter(project(it, &["#0 + 1", "#1"]), "#0 < 3")));
    let pairs = || project(scan("a"), &["#0", "1"]);
    let next =
        |it: Plan| project(filter(join(it, scan("a"), "#0 = #2"), "#1 < 4"), &["#3", "#1 + 1"]);
    check(&recursive(pairs(), next));
    let previous =
        |it: Plan| project(filter(join(scan("a"), it, "#1 = #2"), "#3 < 4"), &["#0", "#3 + 1"]);
    check(&recursive(project(scan("c"), &["#0", "1"]), previous));
    check(&aggregate(recursive(pairs(), next), &[1], &["count(*)", "sum(#0)"]));
    check(&join(recursive(pairs(), next), recursive(pairs(), next), "#0 = #2"));
    let counts = || aggregate(scan("b"), &[0], &["count(*)"]);
    let counted = |it: Plan| {
        let both = join(join(it, scan("a"), "#0 = #2"), counts(), "#3 = #4");
        project(filter(both, "#1 < 5"), &["#3", "#1 + #5"])
    };
    check(&recursive(pairs(), counted));
    check(&recursive(project(counts(), &["#0", "#1"]), next));
}

#[test]
fn recursion_over_outer_joins_and_marks() {
    let pairs = || project(scan("a"), &["#0", "1"]);
    let known = |it: Plan| {
        let steps = join(it, scan("a"), "#0 = #2");
        let marked = mark(filter(steps, "#1 < 4"), scan("c"), "#4 = #3");
        project(filter(marked, "#4 OR #1 < 2"), &["#3", "#1 + 1"])
    };
    check(&recursive(pairs(), known));
    check(&recursive_set(pairs(), known));
    let or_else = |it: Plan| {
        let steps = join(left_join(it, scan("b"), "#0 = #2"), scan("a"), "coalesce(#2, #0) = #4");
        project(filter(steps, "#1 < 4"), &["#5", "#1 + 1"])
    };
    check(&recursive(pairs(), or_else));
    check(&recursive_set(pairs(), or_else));
    let several = |it: Plan| {
        let rows =
            expand(it, "SELECT i1.x FROM generate_series(#0, #0 + 1) AS i1(x)", &["x"], true);
        project(filter(rows, "#1 < 4 AND #2 < 4"), &["#2", "#1 + 1"])
    };
    check(&recursive(pairs(), several));
    check(&recursive_set(pairs(), several));
}

#[test]
fn recursion_over_a_set() {
    let ends = || project(scan("d"), &["#0"]);
    let next = |it: Plan| project(join(it, scan("a"), "#0 = #1"), &["#2"]);
    check(&recursive_set(ends(), next));
    check(&recursive_set(project(scan("a"), &["#0"]), next));
    // All pairs of which the second can be reached from the first.
    let further = |it: Plan| project(join(scan("a"), it, "#1 = #2"), &["#0", "#3"]);
    check(&recursive_set(scan("a"), further));
    check(&recursive_set(project(scan("c"), &["#0", "#0"]), further));
    let bounded = |it: Plan| project(filter(it, "#0 < 3"), &["#0 + 1"]);
    check(&recursive_set(ends(), bounded));
    // Several derivations of a row from another, and in the base.
    let twice = |it: Plan| {
        let both = join(join(it, scan("a"), "#0 = #1"), scan("a"), "#2 = #3");
        project(both, &["#4"])
    };
    check(&recursive_set(union_all([ends(), ends()]), twice));
    check(&aggregate(recursive_set(scan("a"), further), &[0], &["count(*)", "max(#1)"]));
    let reached = || recursive_set(ends(), next);
    check(&join(reached(), recursive_set(scan("a"), further), "#0 = #1"));
    check(&left_join(scan("a"), reached(), "#0 = #2"));
    check(&recursive_set(aggregate(scan("b"), &[0], &[]), next));
    let counted = |it: Plan| {
        let counts = aggregate(scan("a"), &[0, 1], &["count(*)"]);
        project(join(it, counts, "#0 = #1 AND #3 < 2"), &["#2"])
    };
    check(&recursive_set(ends(), counted));
    check(&recursive_set(reached(), |it| project(join(it, reached(), "#0 < #1"), &["#1"])));
}

#[test]
fn windows() {
    let by = |key: &str| {
        ["rank()", "dense_rank()", "row_number()", "lag(#1)", "lead(#0)", "sum(#1)", "count(*)"]
            .map(|it| format!("{it} OVER ({key}ORDER BY #1, #0 DESC)"))
    };
    for input in ["a", "b", "c"] {
        let schema = scan(input).schema();
        let is_text = schema[1].ty.oid == 25;
        for (partition, key) in [
            (&[][..], ""),
            (&[0], "PARTITION BY #0 "),
            (&[1], "PARTITION BY #1 "),
            (&[1, 0], "PARTITION BY #0, #1 "),
        ] {
            let mut calls = by(key).to_vec();
            calls.push(format!("count(#1) OVER ({})", key.trim_end()));
            calls.retain(|it| !is_text || !it.starts_with("sum"));
            let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
            let filter = (input == "b").then_some("#4 = 1");
            check(&window(scan(input), partition, &calls, filter));
        }
    }
}

#[test]
fn the_first_rows_of_partitions() {
    let number = |by: &str, order: &str| format!("row_number() OVER ({by}ORDER BY {order})");
    let rank = |by: &str, order: &str| format!("rank() OVER ({by}ORDER BY {order})");
    for (partition, by) in
        [(&[][..], ""), (&[0], "PARTITION BY #0 "), (&[1, 0], "PARTITION BY #0, #1 ")]
    {
        for order in ["#1", "#1 DESC, #0", "#0 DESC"] {
            let both = [number(by, order), rank(by, order)];
            let both: Vec<&str> = both.iter().map(String::as_str).collect();
            let first = |input: Plan, calls: &[&str], condition: &str| {
                check(&window(input, partition, calls, Some(condition)));
            };
            first(scan("a"), &both[..1], "#2 <= 1");
            first(scan("a"), &both[1..], "#2 < 3");
            first(scan("a"), &both, "#2 > 1 AND #3 <= 2");
            first(scan("b"), &both, "#2 = 2 AND #3 = 2");
            first(scan("c"), &both[..1], "#2 <= 2 AND #0 > 0");
            first(union_all([scan("a"), scan("a")]), &both[1..], "#2 <= 2");
            let pairs = project(join(scan("a"), scan("b"), "#0 = #2"), &["#1", "#3"]);
            first(pairs, &both[..1], "#2 > 1 AND #2 <= 3");
            first(project(scan("b"), &["#1", "- #0"]), &both[..1], "#2 <= 2");
        }
    }
    let first = window(scan("a"), &[], &["row_number() OVER (ORDER BY #1)"], Some("#2 <= 2"));
    check(&aggregate(first.clone(), &[0], &["count(*)", "max(#1)"]));
    check(&join(first, scan("c"), "#0 = #3"));
}

#[test]
fn windows_among_other_operators() {
    let ranks = |input: Plan| {
        window(
            input,
            &[0],
            &["rank() OVER (PARTITION BY #0 ORDER BY #1)", "count(*) OVER (PARTITION BY #0)"],
            None,
        )
    };
    let counts = || aggregate(scan("a"), &[0], &["count(*)"]);
    check(&ranks(counts()));
    check(&ranks(project(join(scan("a"), scan("b"), "#0 = #2"), &["#1", "#3", "#0"])));
    check(&ranks(union_all([scan("a"), project(scan("d"), &["#0", "#0"])])));
    check(&ranks(scan("a").distinct()));
    check(&aggregate(ranks(scan("a")), &[2], &["sum(#0)", "count(*)"]));
    check(&filter(ranks(scan("a")), "#2 <= 1"));
    check(&filter(project(ranks(scan("b")), &["#2", "#1", "#0"]), "#0 = 1"));
    check(&filter(project(ranks(scan("a")), &["#2 + #3", "#1", "#0"]), "#0 > 2 OR #1 = 1"));
    check(&project(ranks(scan("a")), &["#2", "#3"]));
    check(&project(ranks(scan("a")), &["#2", "#3"]).distinct());
    check(&join(ranks(scan("a")), ranks(scan("a")), "#0 = #4 AND #2 < #6"));
    check(&join(
        filter(ranks(scan("a")), "#2 = 1"),
        filter(ranks(scan("a")), "#2 <> 1"),
        "#0 = #4",
    ));
    check(&join(scan("c"), ranks(scan("b")), "#0 = #2"));
    let twice = window(
        ranks(scan("a")),
        &[2],
        &["row_number() OVER (PARTITION BY #2 ORDER BY #0, #1, #3)"],
        None,
    );
    check(&twice);
    check(&window(twice, &[], &["sum(#4) OVER (ORDER BY #0)"], Some("#5 < 4")));
}

#[test]
fn stages_on_stages() {
    let counts = || aggregate(scan("a"), &[0], &["count(*)", "max(#1)"]);
    check(&filter(counts(), "#1 > 1"));
    check(&project(counts(), &["#2", "#0", "#1"]));
    check(&project(counts(), &["#2", "#0", "#0"]));
    check(&aggregate(counts(), &[1], &["sum(#0)", "min(#2)", "count(*)"]));
    check(&join(counts(), scan("a"), "#0 = #3"));
    check(&join(counts(), counts(), "#0 = #4"));
    check(&join(counts(), counts(), "#1 = #4"));
    check(&union_all([counts(), counts()]));
    check(&aggregate(join(counts(), counts(), "#1 = #4"), &[], &["min(#2)", "sum(#0)"]));
    check(&cross_join(scan("a"), aggregate(scan("a"), &[], &["max(#0)"])));
    check(&join(scan("a"), aggregate(scan("b"), &[], &["avg(#0)", "sum(#1)"]), "#0 > #2"));
    check(&join(scan("a").distinct(), scan("c"), "#0 = #2").distinct());
}

#[test]
fn outer_joins() {
    let equal = || left_join(scan("a"), scan("b"), "#0 = #2");
    check(&equal());
    check(&left_join(scan("a"), scan("a"), "#0 = #2"));
    check(&left_join(scan("a"), scan("b"), "#0 < #2 OR #1 IS NULL"));
    check(&left_join(scan("a"), scan("c"), "#0 = #2 AND #1 > 1"));
    check(&left_join(scan("a"), scan("c"), "#0 = #2 AND #2 > 1"));
    check(&left_join(scan("a"), scan("b"), "#0 = 1"));
    check(&left_join(scan("a"), filter(scan("b"), "#0 > 1"), "#0 = #2"));
    check(&left_join(filter(scan("a"), "#1 > 0"), project(scan("b"), &["#0 + 1", "1"]), "#0 = #2"));
    check(&left_join(scan_columns("a", &[]), scan_columns("b", &[]), "true"));
    check(&project(left_join(scan("c"), scan("e"), "#0 = #3"), &["#1", "#2"]));
    check(&filter(equal(), "#2 IS NULL"));
    check(&filter(equal(), "#3 > 1 OR #1 = 1"));
    check(&project(equal(), &["coalesce(#2, #1)", "#3"]));
}

#[test]
fn outer_joins_of_joins() {
    let pair = || left_join(scan("a"), scan("b"), "#0 = #2");
    check(&left_join(pair(), scan("c"), "#1 = #4"));
    check(&left_join(pair(), scan("c"), "#2 = #4"));
    check(&left_join(scan("d"), pair(), "#0 = #2"));
    check(&left_join(pair(), pair(), "#1 = #4"));
    check(&join(pair(), scan("a"), "#2 = #4"));
    check(&join(scan("a"), pair(), "#1 = #4"));
    check(&left_join(join(scan("a"), scan("b"), "#0 = #2"), scan("c"), "#1 = #4"));
    check(&left_join(scan("a"), join(scan("a"), scan("b"), "#0 = #2"), "#0 = #3"));
    check(&left_join(
        union_all([scan("a"), scan("a")]),
        union_all([scan("a"), scan("a")]),
        "#0 = #2",
    ));
    check(&left_join(left_join(pair(), scan("a"), "#0 = #4"), scan("b"), "#5 = #6"));
}

#[test]
fn marks() {
    let equal = || mark(scan("a"), scan("b"), "#0 = #2");
    check(&equal());
    check(&filter(equal(), "#2"));
    check(&filter(equal(), "NOT #2"));
    check(&filter(equal(), "#2 OR #1 = 1"));
    check(&mark(scan("a"), scan("a"), "#0 = #2 AND #1 < #3"));
    check(&mark(scan("a"), scan("b"), "true"));
    // Rows of the change that cancel in what they are compared by need not cancel in the rest.
    check(&mark(scan("a"), filter(scan("b"), "#1 > 1"), "#0 = #2"));
    check(&mark(scan("a"), filter(scan("b"), "#1 > 1"), "true"));
    check(&mark(scan("a"), project(filter(scan("b"), "#1 IS NULL"), &["#0 + 1"]), "#1 < #2"));
    check(&filter(mark(equal(), scan("c"), "#1 = #3"), "#2 OR NOT #3"));
    check(&mark(filter(equal(), "NOT #2"), filter(equal(), "#2"), "#0 = #3"));
    check(&join(filter(equal(), "NOT #2"), scan("c"), "#0 = #3"));
    check(&left_join(scan("a"), equal(), "#0 = #2 AND #4"));
    check(&mark(join(scan("a"), scan("c"), "#0 = #2"), scan("b"), "#3 IS NULL OR #2 = #4"));
    check(&Plan::semi_join(scan("a"), scan("b"), None, false));
}

#[test]
fn full_joins() {
    let pairs = || full_join(scan("a"), scan("b"), "#0 = #2");
    check(&pairs());
    check(&full_join(scan("a"), scan("a"), "#0 = #2 AND #1 > 1"));
    check(&full_join(pairs(), scan("c"), "#2 = #4"));
    check(&aggregate(pairs(), &[0], &["count(*)", "max(#2)", "sum(#3)"]));
}

#[test]
fn aggregates_over_outer_joins() {
    let pairs = || left_join(scan("a"), scan("b"), "#0 = #2");
    check(&aggregate(pairs(), &[0], &["count(*)", "count(#2)", "sum(#3)"]));
    check(&aggregate(pairs(), &[2], &["min(#1)", "max(#0)"]));
    check(&aggregate(pairs(), &[], &["min(#2)", "max(1)"]));
    check(&project(pairs(), &["#2"]).distinct());
    let marked = || mark(scan("a"), scan("b"), "#0 = #2");
    check(&aggregate(marked(), &[0], &["count(*)", "min(#1)", "max(#1)"]));
    check(&aggregate(marked(), &[], &["min(#1)", "count(*) FILTER (WHERE #2)"]));
    check(&aggregate(filter(marked(), "NOT #2"), &[1], &["max(#0)"]));
    let counts = || aggregate(scan("b"), &[0], &["count(*)"]);
    check(&left_join(scan("a"), counts(), "#0 = #2"));
    check(&left_join(counts(), scan("a"), "#0 = #2"));
    check(&filter(mark(counts(), counts(), "#0 < #2"), "NOT #2"));
    check(&aggregate(left_join(counts(), pairs(), "#0 = #4"), &[1], &["count(*)", "max(#2)"]));
}

/// Where equal values have several images, the result must show one that is there.
fn check_open(plan: &Plan, images: &dyn Fn(&ZSet, &ZSet) -> bool, inputs: &Plan) {
    let law = |bytes: Vec<u8>| {
        let mut tape = Tape::new(&bytes);
        let mut history = beginning(&mut tape);
        let mut runner = Runner::new(stage(plan.clone()), &database(&history));
        for _ in 0..4 {
            history = next(&mut tape, &history);
            runner.refresh(&database(&history), &superset(&history, 0));
            let content = runner.content();
            assert_eq!(content.canonical(), eval(plan, &history).canonical(), "\n{plan}");
            assert!(images(&content, &eval(inputs, &history)), "{content:?} of {history:?}");
        }
        Ok(())
    };
    let mut runner = TestRunner::new(config(120));
    runner.run(&tape(400), law).unwrap_or_else(|error| panic!("{error}\n{plan}"));
}

/// The first column of `content` occurs, as it is, in the first column of `inputs`.
fn occurs(content: &ZSet, inputs: &ZSet) -> bool {
    let occurs = |row: &Row| inputs.iter().any(|(it, _)| it[0] == row[0]);
    content.iter().all(|(row, _)| row[0].is_null() || occurs(row))
}

#[test]
fn a_grouping_column_shows_an_image_that_is_there() {
    let numbers = || scan_columns("b", &[1]);
    check_open(&numbers().distinct(), &occurs, &numbers());
    let counts = aggregate(scan_columns("b", &[1, 0]), &[0], &["count(*)", "max(#1)"]);
    check_open(&counts, &occurs, &numbers());
    let counts = aggregate(scan_columns("b", &[1, 0]), &[0, 1], &["count(*)"]);
    check_open(&counts, &occurs, &numbers());
    let pairs = project(join(scan("b"), scan("b"), "#0 = #2"), &["#1"]);
    check_open(&pairs.clone().distinct(), &occurs, &pairs);
}

#[test]
fn an_extremum_shows_an_image_that_is_there() {
    for call in ["min(#0)", "max(#0)", "min(#0) FILTER (WHERE #0 < 9)"] {
        check_open(
            &aggregate(scan_columns("b", &[1]), &[], &[call]),
            &occurs,
            &scan_columns("b", &[1]),
        );
    }
}

/// A row that came and went between the terms of a join must not stand for a group's key.
#[test]
fn a_cancelled_row_shows_no_image() {
    let row = |x: i64, other: Value| vec![Value::Int(x), other];
    let settled = |rows: Vec<Row>| {
        let rows: ZSet = rows.into_iter().collect();
        Content { old: rows.clone(), new: rows }
    };
    let mut history = History::default();
    for table in &TABLES {
        history.set(&table.source(), Content::default());
    }
    let (a, b) = (TABLES[0].source(), TABLES[1].source());
    let old_a = [row(1, Value::Null), row(2, Value::Null)];
    let old_b = [row(1, Value::numeric("1.0")), row(2, Value::numeric("1.00"))];
    history.set(&a, settled(old_a.to_vec()));
    history.set(&b, settled(old_b.to_vec()));
    let plan = project(join(scan("b"), scan("a"), "#0 = #2"), &["#1"]).distinct();
    let mut runner = Runner::new(stage(plan), &database(&history));
    assert_eq!(runner.content(), ZSet::from_iter([vec![Value::numeric("1.0")]]));

    let new_a = [&old_a[..], &[row(1, Value::Int(7))]].concat();
    let content = |old: &[Row], new: &[Row]| Content {
        old: old.iter().cloned().collect(),
        new: new.iter().cloned().collect(),
    };
    history.set(&a, content(&old_a, &new_a));
    history.set(&b, content(&old_b, &old_b[1..]));
    runner.refresh(&database(&history), &superset(&history, 0));
    assert_eq!(runner.content(), ZSet::from_iter([vec![Value::numeric("1.00")]]));
}
