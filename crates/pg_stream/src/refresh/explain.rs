//! What `pgstream.explain_st` tells about a stream table.

use pgrx::pg_sys::Oid;
use pgstream_ivm::{
    aggregate, derive,
    look_up::{self, Ordered, look_ups, orders},
    plan::{AggregateFunction, Plan, Source},
    sql::{self, delta_name},
    stage::{Group, Head, Recursion, Stage, Window},
};

use crate::{
    error::Error,
    pg::{relation, security::Identity, spi},
    refresh::{
        definition::{self, Differential},
        differential::matching,
        runnable::runnable,
    },
};

/// Property and value, in the order of presentation.
pub fn explain(pgs_id: i64) -> Result<Vec<(String, String)>, Error> {
    let _superuser = Identity::superuser();
    let mut rows = Vec::new();
    let mut consumed = None;
    spi::run(
        "SELECT pgs_schema || '.' || pgs_name, defining_query, refresh_mode, status, \
                is_populated::text, coalesce(frontier::text, ''), \
                split_part(consumed, ';', 1) \
         FROM pgstream.pgs_stream_tables WHERE pgs_id = $1",
        &[pgs_id.into()],
        |row| {
            let names = [
                "pgs_name",
                "defining_query",
                "refresh_mode",
                "status",
                "is_populated",
                "frontier",
            ];
            for (position, name) in names.iter().enumerate() {
                rows.push(((*name).to_owned(), row.get::<String>(position).unwrap_or_default()));
            }
            consumed = row.get::<String>(names.len());
        },
    );
    let definition = definition::of(pgs_id)?;
    rows.push(("output_columns".to_owned(), definition.columns.join(", ")));
    let oids = |it: &mut dyn Iterator<Item = u32>| {
        it.map(|oid| oid.to_string()).collect::<Vec<_>>().join(", ")
    };
    let Some(differential) = &definition.differential else {
        let query = relation::name(definition.view);
        rows.push(("dvm_supported".to_owned(), "false".to_owned()));
        rows.push(("operator_tree".to_owned(), "the query as PostgreSQL runs it".to_owned()));
        rows.push((
            "delta_query".to_owned(),
            format!("SELECT * FROM {}", sql::quote_qualified(&query.0, &query.1)),
        ));
        rows.push((
            "source_oids".to_owned(),
            oids(&mut definition.locked.iter().map(|it| it.to_u32())),
        ));
        rows.push((
            "strategy".to_owned(),
            "the whole query is evaluated and the difference applied; cost follows the size of \
             the sources"
                .to_owned(),
        ));
        return Ok(rows);
    };
    rows.push(("dvm_supported".to_owned(), "true".to_owned()));
    rows.push((
        "source_oids".to_owned(),
        oids(&mut differential.sources.iter().map(|it| it.relation.to_u32())),
    ));
    if differential.depends_on_moment {
        rows.push((
            "strategy".to_owned(),
            "the query depends on the time, the session or the catalog: every refresh evaluates \
             the whole query and applies the difference; cost follows the size of the sources"
                .to_owned(),
        ));
    }
    rows.push(("operator_tree".to_owned(), operator_tree(differential)));
    for (index, stage) in differential.pipeline.stages.iter().enumerate() {
        explain_stage(differential, index, stage, consumed.as_deref(), &mut rows);
    }
    let missing: Vec<String> = missing_indexes(differential);
    if !missing.is_empty() {
        rows.push(("missing_indexes".to_owned(), missing.join("; ")));
    }
    let delta_query = delta_query(differential, consumed.as_deref());
    rows.push(("delta_query".to_owned(), delta_query));
    Ok(rows)
}

/// The statement that computes the change of the result: that of the last stage which does more than
/// to pass on what an earlier one has computed.
fn delta_query(differential: &Differential, consumed: Option<&str>) -> String {
    let stages = differential.pipeline.stages.iter().enumerate().rev();
    let last = stages
        .skip_while(|(index, stage)| *index > 0 && stage.head.is_none() && is_passed_on(stage))
        .find_map(|(index, _)| {
            Some((index, delta_statements(differential, index).into_iter().next()?))
        });
    last.map_or(String::new(), |(index, (_, text))| runnable(differential, index, &text, consumed))
}

fn is_passed_on(stage: &Stage) -> bool {
    let scans = stage.body.scans();
    scans.len() == 1 && matches!(scans[0].source, Source::Stage(_))
}

/// Statements for indexes on the sources by which a refresh would look up rows, where there is none
/// that starts with one of the columns.
fn missing_indexes(differential: &Differential) -> Vec<String> {
    let mut missing = Vec::new();
    let orders = orders(&differential.pipeline).into_iter();
    let orders: Vec<Ordered> =
        orders.filter(|it| !definition::has_index(it, &differential.storages)).collect();
    for order in &orders {
        let Source::Table { oid, sql } = &order.source else { continue };
        let columns: Vec<String> =
            order.keys.iter().chain([&order.by]).map(|it| column_name(*oid, *it)).collect();
        missing.push(format!("CREATE INDEX ON {sql} ({})", columns.join(", ")));
    }
    for look_up in look_ups(&differential.pipeline) {
        let Source::Table { oid, sql } = &look_up.source else { continue };
        // Such an index serves here as well.
        if orders.iter().any(|it| it.source == look_up.source && it.keys == look_up.attributes) {
            continue;
        }
        let attributes: Vec<String> = look_up.attributes.iter().map(usize::to_string).collect();
        let columns: Option<String> = spi::get_one(
            "SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) \
             FROM pg_attribute AS a WHERE a.attrelid = $1 AND a.attnum = ANY ($2::int2[]) \
             AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = $1 AND i.indisvalid \
             AND i.indpred IS NULL AND i.indkey[0] = ANY ($2::int2[]))",
            &[Oid::from(*oid).into(), format!("{{{}}}", attributes.join(",")).into()],
        );
        if let Some(columns) = columns {
            missing.push(format!("CREATE INDEX ON {sql} ({columns})"));
        }
    }
    missing
}

fn column_name(table: u32, attribute: usize) -> String {
    spi::get_one(
        "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = $1 AND attnum = $2::int2",
        &[Oid::from(table).into(), attribute.to_string().into()],
    )
    .expect("a column that the query reads")
}

fn operator_tree(differential: &Differential) -> String {
    let mut text = String::new();
    for (index, stage) in differential.pipeline.stages.iter().enumerate() {
        text += &format!("Stage {index}\n");
        let mut depth = "  ";
        if let Some(head) = stage.head.as_ref().and_then(describe_head) {
            text += &format!("  {head}\n");
            depth = "    ";
        }
        for line in stage.body.to_string().lines() {
            text += &format!("{depth}{line}\n");
        }
    }
    text
}

/// `None` for a body that is evaluated as a whole, which says so itself.
fn describe_head(head: &Head) -> Option<String> {
    match head {
        Head::Group(head) => Some(describe_group(head)),
        Head::Window(head) => Some(describe_window(head)),
        Head::Recursion(head) if head.is_set => Some("Recursion to a fixpoint".to_owned()),
        Head::Recursion(_) => Some("Recursion by depth".to_owned()),
        Head::Whole => None,
    }
}

fn describe_window(head: &Window) -> String {
    let partition: Vec<String> = head.partition.iter().map(|it| format!("#{it}")).collect();
    let calls: Vec<String> = head.calls.iter().map(ToString::to_string).collect();
    let filter = head.filter.iter().map(|it| format!(" where {it}"));
    let filter: String = filter.collect();
    format!("Window [{}] [{}]{filter}", partition.join(", "), calls.join(", "))
}

fn describe_group(head: &Group) -> String {
    let keys: Vec<String> = head.keys.iter().map(|it| format!("#{it}")).collect();
    if head.calls.is_empty() {
        return format!("Distinct [{}]", keys.join(", "));
    }
    let calls: Vec<String> = head.calls.iter().map(|it| it.call.to_string()).collect();
    format!("Aggregate [{}] [{}]", keys.join(", "), calls.join(", "))
}

fn explain_stage(
    differential: &Differential,
    index: usize,
    stage: &Stage,
    consumed: Option<&str>,
    rows: &mut Vec<(String, String)>,
) {
    let storage = &differential.storages[index];
    let is_deferred = storage.inline.is_some();
    let place = if is_deferred { "none; it is evaluated where it is read" } else { &storage.table };
    rows.push((format!("stage_{index}_storage"), place.to_owned()));
    let (strategy, cost) = strategy(stage);
    rows.push((format!("stage_{index}_strategy"), strategy));
    rows.push((format!("stage_{index}_cost"), cost));
    for (name, statement) in delta_statements(differential, index) {
        let statement = runnable(differential, index, &statement, consumed);
        rows.push((format!("stage_{index}_{name}"), statement));
    }
    if is_deferred {
        return;
    }
    let how = match stage.is_counted() {
        true => sql::Matching::Ctid,
        false => matching(stage.shows_key()),
    };
    let apply = sql::apply(storage, &stage.fixed(), &how);
    rows.push((format!("stage_{index}_delete"), apply.delete));
    rows.push((format!("stage_{index}_update"), apply.update));
    rows.push((format!("stage_{index}_insert"), apply.insert));
}

/// The queries of a stage when every source changed.
fn delta_statements(differential: &Differential, index: usize) -> Vec<(String, String)> {
    let stage = &differential.pipeline.stages[index];
    let storages = &differential.storages;
    // A recursion starts from what it was.
    let delta = derive::delta(&stage.body, &|source| *source != Source::Stage(index));
    if matches!(delta, Plan::Empty(_)) {
        return Vec::new();
    }
    let delta = look_up::with_indexes(delta, &differential.pipeline, &mut |orders| {
        differential.looks_up(orders, 1)
    });
    match &stage.head {
        Some(Head::Whole) => {
            let storages = &differential.storages;
            let text = sql::identified_rows(&stage.body, None, stage.output.len(), storages);
            vec![("query".to_owned(), text)]
        }
        Some(Head::Recursion(head)) if head.is_set => {
            let all = sql::fixpoint(stage, index, head, &delta, storages);
            let titles = ["delta_query", "step_query"].map(str::to_owned);
            titles.into_iter().zip([all.changed, all.step]).collect()
        }
        Some(Head::Recursion(head)) => {
            let all = sql::recursion(stage, index, head, &delta, storages);
            vec![("delta_query".to_owned(), all.changed), ("step_query".to_owned(), all.step)]
        }
        Some(Head::Window(head)) => {
            let all = sql::window(stage, head, &delta, &storages[index], storages);
            let titles = ["delta_query", "stored_query", "rescan_query"];
            let statements = [all.touched, all.stored, all.evaluated];
            titles.into_iter().map(str::to_owned).zip(statements).collect()
        }
        Some(Head::Group(head)) => {
            let all = sql::head(stage, head, &delta, &storages[index], storages);
            let mut statements = vec![("delta_query".to_owned(), all.changed)];
            statements.push(("rescan_query".to_owned(), all.rescan));
            statements
        }
        None => {
            let text =
                sql::identified_delta(&delta, stage.key.as_deref(), stage.output.len(), storages);
            vec![("delta_query".to_owned(), text)]
        }
    }
}

fn counts_matches(plan: &Plan) -> bool {
    matches!(plan, Plan::LeftJoin { .. } | Plan::Mark { .. })
        || plan.inputs().into_iter().any(counts_matches)
}

/// How a stage is maintained, and what its cost follows.
fn strategy(stage: &Stage) -> (String, String) {
    let inputs: Vec<String> = stage
        .sources()
        .into_iter()
        .map(|source| match source {
            Source::Table { sql, .. } => format!("{sql} as {}", delta_name(source)),
            Source::Stage(_) => delta_name(source),
        })
        .collect();
    let reads = format!("reads changes of {}", inputs.join(", "));
    if let Plan::Opaque { reason, .. } = &stage.body {
        return (
            format!("evaluated as a whole, for {reason}, and the difference applied; {reads}"),
            "follows the size of what it reads, whenever any of it changed".to_owned(),
        );
    }
    if let Some(Head::Recursion(Recursion { is_set: true, .. })) = &stage.head {
        return (
            format!(
                "recursion to a fixpoint: rows that have lost their support leave, rows that have \
                 derivations join, and their consequences follow; {reads}"
            ),
            "follows the change of the result, and rows whose support goes while they can be \
             derived otherwise; one query for each step; needs an index on the columns by which \
             the recursive part joins"
                .to_owned(),
        );
    }
    if let Some(Head::Recursion(_)) = &stage.head {
        return (
            format!("recursion: the change is followed from depth to depth; {reads}"),
            "follows the change of the result, with one query for each depth that it reaches; \
             needs an index on the columns by which the recursive part joins"
                .to_owned(),
        );
    }
    if let Some(window) = stage.window() {
        return window_strategy(stage, window, &reads);
    }
    let Some(head) = stage.group() else {
        if counts_matches(&stage.body) {
            return (
                format!(
                    "match counts: rows that the change touches, and those among them that have \
                     gained their first match or lost their last one; {reads}"
                ),
                "follows the change and the matches of what it touches, through the indexes on \
                 the join columns of both sides where there are any"
                    .to_owned(),
            );
        }
        return (
            format!("linear: the change is computed from the changes alone; {reads}"),
            "follows the change; a join looks up the other tables, through their indexes where \
             they have one on the join columns"
                .to_owned(),
        );
    };
    let rescanned: Vec<String> = head
        .calls
        .iter()
        .filter(|it| aggregate::is_rescanned(it))
        .map(|it| it.call.to_string())
        .collect();
    if !rescanned.is_empty() {
        return (
            format!(
                "group rescan: affected groups are evaluated again for {}; {reads}",
                rescanned.join(", ")
            ),
            "follows the size of the affected groups; needs an index on the grouping columns of \
             the sources"
                .to_owned(),
        );
    }
    if head.calls.iter().any(|it| matches!(it.function, AggregateFunction::Extremum { .. })) {
        return (
            format!("algebraic, with rescan of a group whose minimum or maximum left; {reads}"),
            "follows the change; where an extremum left, the next one is found by an index on the \
             grouping columns and the argument, if there is one; otherwise the group is read again"
                .to_owned(),
        );
    }
    let how = if head.calls.is_empty() { "counts of equal rows" } else { "algebraic" };
    (format!("{how}: old values plus the change; {reads}"), "follows the change".to_owned())
}

fn window_strategy(stage: &Stage, window: &Window, reads: &str) -> (String, String) {
    if window.first.is_some() {
        let by: Vec<&str> =
            window.partition.iter().map(|it| stage.output[*it].name.as_str()).collect();
        let (of, by) = match by.as_slice() {
            [] => ("all rows", "ORDER BY".to_owned()),
            by => {
                ("affected partitions", format!("PARTITION BY ({}), then ORDER BY", by.join(", ")))
            }
        };
        return (
            format!(
                "first rows of {of}: evaluated again unless all changes are behind the rows that \
                 are kept; {reads}"
            ),
            format!(
                "follows the number of kept rows, through an index on the columns of {by}; without \
                 one, {of} are read when the first rows change"
            ),
        );
    }
    if window.partition.is_empty() {
        return (
            format!("window functions over all rows are evaluated again; {reads}"),
            "grows with the table: without PARTITION BY each change can touch every row".to_owned(),
        );
    }
    let names: Vec<&str> =
        window.partition.iter().map(|it| stage.output[*it].name.as_str()).collect();
    (
        format!(
            "partition rescan: window functions are evaluated again over the affected partitions; {reads}"
        ),
        format!(
            "follows the size of the affected partitions; needs an index on the columns of \
             PARTITION BY ({}) of the sources",
            names.join(", ")
        ),
    )
}
