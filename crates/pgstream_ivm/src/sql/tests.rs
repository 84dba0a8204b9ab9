//! Snapshots of the printed SQL. They show its form; that it is right is shown by
//! `tests/property_tests`, which runs it.

use crate::{
    derive::delta,
    look_up::with_indexes,
    model::storage,
    plan::{Plan, Scan, Source},
    sql::{self, Matching, Storage, apply, full_select, head, identified_delta, identified_rows},
    stage::{Stage, stage},
    testing::{
        aggregate, cross_join, expand, filter, full_join, join, left_join, mark, project, scalar,
        scan, scan_columns, union_all, window,
    },
};

/// A snapshot under a name, of titled statements, one clause a line.
macro_rules! assert_sql {
    ($name:expr, $($title:expr => $sql:expr),+ $(,)?) => {
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!($name, [$(format!("-- {}\n{}\n", $title, clauses(&$sql))),+].join("\n"));
        });
    };
}

/// `sql` with line breaks, for people.
fn clauses(sql: &str) -> String {
    const STARTS: [&str; 10] = [
        "FROM",
        "WHERE",
        "LEFT JOIN",
        "UNION ALL",
        "GROUP BY",
        "HAVING",
        "SET",
        "USING",
        "SELECT",
        "ON",
    ];
    let broken = STARTS
        .iter()
        .fold(sql.to_owned(), |sql, it| sql.replace(&format!(" {it} "), &format!("\n{it} ")));
    broken.replace("\nFROM (SELECT", "\nFROM (\nSELECT")
}

fn storages(plan: &Plan) -> (Vec<Stage>, Vec<Storage>) {
    let stages = stage(plan.clone()).stages;
    let storages = stages.iter().enumerate().map(|(index, it)| storage(index, it)).collect();
    (stages, storages)
}

/// The delta of a plan's last stage when the tables with these numbers changed, and all stages.
fn delta_of(plan: &Plan, tables: &[u32]) -> String {
    let (stages, storages) = storages(plan);
    let last = stages.last().expect("a stage");
    let changed = |source: &Source| match source {
        Source::Table { oid, .. } => tables.contains(oid),
        Source::Stage(_) => true,
    };
    identified_delta(
        &delta(&last.body, &changed),
        last.key.as_deref(),
        last.output.len(),
        &storages,
    )
}

const A: u32 = 1;
const B: u32 = 2;
const C: u32 = 3;

/// PostgreSQL applies the policy to the table itself, so only the change is printed with it.
#[test]
fn a_policy_stands_behind_a_barrier_before_the_change() {
    let Plan::Scan(table) = scan("a") else { panic!("a leaf") };
    let policy = Some(scalar("#1 > 3", &table.columns));
    let secured = Plan::Scan(Scan { policy, ..table });
    let plan = join(filter(secured, "#0 = 7"), scan("b"), "#0 = #2");
    assert_sql!("policy", "both changed" => delta_of(&plan, &[1, 2]));
}

#[test]
fn expansions() {
    let item = "SELECT i1.x FROM generate_series(1, #0) AS i1(x)";
    let plan = join(expand(scan("a"), item, &["x"], false), scan("b"), "#2 = #3");
    assert_sql!("expand",
        "full" => full_select(&plan, &[]),
        "delta" => delta_of(&plan, &[A]),
    );
    let plan = expand(join(scan("a"), scan("b"), "#0 = #2"), item, &["x"], true);
    assert_sql!("expand_outer",
        "full" => full_select(&plan, &[]),
        "delta" => delta_of(&plan, &[A]),
    );
}

#[test]
fn stateless_plans() {
    let plan = filter(scan("a"), "#0 = 1 OR #1 IS NULL");
    assert_sql!("scan_and_filter",
        "full" => full_select(&plan, &[]),
        "delta" => delta_of(&plan, &[A]),
    );
    let plan = filter(project(filter(scan("a"), "#0 > 0"), &["- #0", "#1", "'#0'"]), "#1 - #0 > 1");
    assert_sql!("projection",
        "full" => full_select(&plan, &[]),
        "delta" => delta_of(&plan, &[A]),
    );
    let plan = filter(scan("c"), "#1 <> 'it''s #0'");
    assert_sql!("keyed_scan",
        "rows" => identified_rows(&plan, plan.key().as_deref(), plan.schema().len(), &[]),
        "delta" => delta_of(&plan, &[C]),
    );
    let plan =
        union_all([scan("a"), filter(scan("a"), "#0 = 1"), project(scan("c"), &["#0", "1"])]);
    assert_sql!("union_all",
        "full" => full_select(&plan, &[]),
        "delta, all changed" => delta_of(&plan, &[A, C]),
        "delta, only c changed" => delta_of(&plan, &[C]),
    );
    assert_sql!("few_columns",
        "unit" => full_select(&Plan::Unit, &[]),
        "empty, computed" => full_select(&project(Plan::Empty(scan("a").schema()), &["#0 + 1"]), &[]),
        "no columns, delta" => delta_of(&scan_columns("a", &[]), &[A]),
        "no columns, old" => delta_of(&cross_join(scan_columns("a", &[]), scan_columns("b", &[])), &[A, B]),
        "nothing changed" => delta_of(&scan("a"), &[]),
    );
}

#[test]
fn matches() {
    let plan = left_join(scan("a"), filter(scan("b"), "#1 > 1"), "#0 = #2");
    assert_sql!("left_join",
        "full" => full_select(&plan, &[]),
        "a and b changed" => delta_of(&plan, &[A, B]),
        "a changed" => delta_of(&plan, &[A]),
        "b changed" => delta_of(&plan, &[B]),
    );
    let plan = left_join(left_join(scan("a"), scan("b"), "#0 = #2"), scan("c"), "#1 = #4");
    let (_, storages) = storages(&plan);
    let last = stage(plan.clone()).stages.pop().expect("a stage");
    assert_sql!("left_join_of_a_deferred_stage",
        "full" => full_select(&last.body, &storages),
        "all changed" => delta_of(&plan, &[A, B, C]),
    );
    let plan = full_join(scan("a"), scan("b"), "#0 = #2");
    assert_sql!("full_join", "full" => full_select(&plan, &[]));
    let plan = filter(mark(scan("a"), scan("b"), "#0 = #2"), "NOT #2");
    assert_sql!("anti_join",
        "full" => full_select(&plan, &[]),
        "b changed" => delta_of(&plan, &[B]),
    );
    let change = delta(&plan, &|source| matches!(source, Source::Table { oid: B, .. }));
    let change = with_indexes(change, &stage(plan.clone()), &mut |_| true);
    assert_sql!("anti_join_with_an_index",
        "b changed" => identified_delta(&change, plan.key().as_deref(), 3, &[]),
    );
}

#[test]
fn joins() {
    let plan = join(scan("a"), scan("b"), "#0 = #2");
    assert_sql!("join_of_two",
        "full" => full_select(&plan, &[]),
        "a and b changed" => delta_of(&plan, &[A, B]),
        "a changed" => delta_of(&plan, &[A]),
        "b changed" => delta_of(&plan, &[B]),
        "nothing changed" => delta_of(&plan, &[]),
    );
    let plan = join(join(scan("a"), scan("b"), "#0 = #2"), scan("c"), "#1 = #4");
    assert_sql!("join_of_three",
        "full" => full_select(&plan, &[]),
        "a, b and c changed" => delta_of(&plan, &[A, B, C]),
        "a and b changed" => delta_of(&plan, &[A, B]),
        "a and c changed" => delta_of(&plan, &[A, C]),
        "b and c changed" => delta_of(&plan, &[B, C]),
        "a changed" => delta_of(&plan, &[A]),
        "b changed" => delta_of(&plan, &[B]),
        "c changed" => delta_of(&plan, &[C]),
    );
    let plan = join(scan("a"), scan("a"), "#0 = #3");
    assert_sql!("self_join", "delta" => delta_of(&plan, &[A]));
    let plan =
        join(union_all([scan("a"), project(scan("c"), &["#0", "#0"])]), scan("b"), "#0 = #2");
    assert_sql!("join_over_union_all", "delta" => delta_of(&plan, &[A, B, C]));
}

/// The statements of the first stage.
fn head_of(plan: &Plan, tables: &[u32]) -> [String; 4] {
    let (stages, storages) = storages(plan);
    let changed =
        |source: &Source| matches!(source, Source::Table { oid, .. } if tables.contains(oid));
    let of_head = stages[0].group().expect("a head");
    let delta = delta(&stages[0].body, &changed);
    let statements = head(&stages[0], of_head, &delta, &storages[0], &storages);
    let null = statements.rescan_null.unwrap_or_else(|| "none".to_owned());
    [statements.changed, statements.rescan, null, statements.all]
}

macro_rules! assert_head {
    ($name:literal, $plan:expr, $tables:expr) => {
        let [changed, rescan, rescan_null, all] = head_of(&$plan, &$tables);
        assert_sql!($name,
            "changed" => changed,
            "rescan" => rescan,
            "rescan with a NULL key" => rescan_null,
            "all" => all,
        );
    };
}

#[test]
fn heads() {
    assert_head!(
        "count",
        aggregate(
            scan("a"),
            &[0],
            &["count(*)", "count(#1)", "count(#1) FILTER (WHERE #0 = 1 OR #1 = 2)",]
        ),
        [A]
    );
    assert_head!(
        "sum_of_integers",
        aggregate(scan("c"), &[1], &["sum(#0)", "sum(#0) FILTER (WHERE #1 IS NULL)",]),
        [C]
    );
    assert_head!("sum_of_nullable_integers", aggregate(scan("a"), &[], &["sum(#0)"]), [A]);
    assert_head!("sum_of_prices", aggregate(scan("d"), &[0], &["sum(#1)", "avg(#1)"]), [4]);
    assert_head!("sum_of_numerics", aggregate(scan("b"), &[0], &["sum(#1)", "avg(#1)"]), [B]);
    assert_head!("average_of_integers", aggregate(scan("a"), &[0], &["avg(#1)"]), [A]);
    assert_head!(
        "extrema",
        aggregate(scan("a"), &[0], &["min(#1)", "max(#1) FILTER (WHERE #0 > 0 OR #1 > 0)",]),
        [A]
    );
    let pairs = || join(scan("a"), scan("a"), "#0 = #2");
    assert_head!("extrema_over_a_self_join", aggregate(pairs(), &[1], &["min(#3)"]), [A]);
    assert_head!("extremum_of_a_constant", aggregate(pairs(), &[], &["min(1)"]), [A]);
    assert_head!("rescan", aggregate(scan("a"), &[0], &["any_value(#1)"]), [A]);
    let flags = project(scan("a"), &["#0", "#1 > 0"]);
    assert_head!("decided", aggregate(flags, &[0], &["bool_and(#1)", "bool_or(#1 IS NULL)"]), [A]);
    assert_head!("distinct", scan("c").distinct(), [C]);
    assert_head!(
        "inexact_keys",
        aggregate(join(scan("b"), scan("b"), "#0 = #2"), &[1, 0], &["count(*)"],),
        [B]
    );
}

#[test]
fn aggregates_of_distinct_values() {
    let calls = ["count(*)", "count(DISTINCT #1)", "count(DISTINCT #1) FILTER (WHERE #1 > 1)"];
    let (stages, storages) = storages(&aggregate(scan("a"), &[0], &calls));
    let changed = |index: usize| {
        let of_head = stages[index].group().expect("a head");
        let delta = delta(&stages[index].body, &|_| true);
        head(&stages[index], of_head, &delta, &storages[index], &storages).changed
    };
    assert_sql!("aggregate_of_distinct_values",
        "values" => changed(0),
        "aggregate" => changed(1),
    );
}

#[test]
fn windows() {
    let rank = "rank() OVER (PARTITION BY #1, #0 ORDER BY #1)";
    for (name, plan) in [
        ("window", window(scan("b"), &[1, 0], &[rank], Some("#2 <= 3"))),
        ("window_over_all_rows", window(scan("c"), &[], &["count(*) OVER ()"], None)),
        (
            "first_rows_of_partitions",
            window(
                scan("a"),
                &[0],
                &["rank() OVER (PARTITION BY #0 ORDER BY #1 DESC)"],
                Some("#2 <= 3"),
            ),
        ),
        (
            "first_rows",
            window(scan("a"), &[], &["row_number() OVER (ORDER BY #1, #0)"], Some("#2 <= 3")),
        ),
    ] {
        let (stages, storages) = storages(&plan);
        let of_head = stages[0].window().expect("a window");
        let delta = delta(&stages[0].body, &|_| true);
        let all = sql::window(&stages[0], of_head, &delta, &storages[0], &storages);
        assert_sql!(name,
            "touched" => all.touched,
            "stored" => all.stored,
            "evaluated" => all.evaluated,
            "evaluated with a NULL key" => all.evaluated_null.unwrap_or_else(|| "none".to_owned()),
            "all" => all.all,
        );
    }
}

#[test]
fn stages_on_stages() {
    let counts = aggregate(scan("a"), &[0], &["count(*)"]);
    let plan = join(counts, scan("b"), "#0 = #2");
    assert_sql!("aggregate_below_join",
        "rows" => {
            let (stages, storages) = storages(&plan);
            let last = stages.last().expect("a stage");
            identified_rows(&last.body, last.key.as_deref(), last.output.len(), &storages)
        },
        "delta" => delta_of(&plan, &[A, B]),
    );
}

#[test]
fn applying() {
    let counted = storages(&aggregate(scan("a"), &[0], &["sum(#1)"])).1.remove(0);
    let statements = apply(&counted, &[0], &Matching::Ctid);
    assert_sql!("apply_to_groups",
        "delete" => statements.delete,
        "update" => statements.update,
        "insert" => statements.insert,
    );
    let keyed = storages(&scan("c")).1.remove(0);
    let statements = apply(&keyed, &[], &Matching::Content);
    assert_sql!("apply_to_keyed_rows",
        "delete" => statements.delete,
        "update" => statements.update,
        "insert" => statements.insert,
    );
    let copies = storages(&scan("a")).1.remove(0);
    let statements = apply(&copies, &[], &Matching::ContentCopies);
    assert_sql!("apply_to_copies",
        "delete" => statements.delete,
        "insert" => statements.insert,
    );
    let distinct = storages(&scan("a").distinct()).1.remove(0);
    let statements = apply(&distinct, &[0, 1], &Matching::Ctid);
    assert_sql!("apply_to_distinct_rows", "update" => statements.update);
}

#[test]
fn more_columns_than_a_function_takes_are_hashed_as_a_row() {
    let wide = project(join(scan("b"), scan("b"), "#0 = #2"), &["#1"; 101]);
    let [changed, ..] = head_of(&wide.distinct(), &[B]);
    assert!(changed.contains("pgstream.key_id(ROW(h.k0, "));
    assert!(changed.contains("pgstream.row_id(ROW(c0, "));
}
