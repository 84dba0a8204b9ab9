//! `pgstream.create_stream_table`.

use pgrx::{pg_sys::panic::ErrorReport, prelude::*};
use pgstream_core::{mode::RefreshMode, name::QualifiedName};

use crate::{
    api::options,
    capture,
    catalog::{self, New},
    ddl,
    error::Error,
    fault::{self, Step},
    lower::{self, Analyzed, Lowered, Refusal, RelationKind},
    pg::text::Argument,
    pg::{
        access, decode,
        deparse::{self, PortableSettings},
        dump, name,
        original::OriginalErrors,
        relation,
        security::Identity,
        spi, wake,
    },
    refresh,
    settings::{self, CdcMode},
};

#[pg_extern(sql = false)]
fn create_stream_table(
    name: Option<Argument>,
    query: Option<Argument>,
    schedule: Option<Argument>,
    refresh_mode: Option<Argument>,
    initialize: Option<bool>,
) -> Result<(), ErrorReport> {
    let _errors = OriginalErrors::keep();
    let new = Request {
        name: options::required(name.as_deref(), "name")?,
        query: options::required(query.as_deref(), "query")?,
        schedule: options::schedule(schedule.as_deref())?,
        mode: options::mode(options::required(refresh_mode.as_deref(), "refresh_mode")?)?,
        initialize: initialize.unwrap_or(true),
    };
    Ok(create(&new)?)
}

struct Request<'a> {
    name: &'a str,
    query: &'a str,
    schedule: Option<&'a str>,
    mode: RefreshMode,
    initialize: bool,
}

/// A dump leaves out what others have put there.
const RESERVED_SCHEMAS: [&str; 4] =
    ["pgstream", "pgstream_changes", "pgstream_state", "information_schema"];

fn create(request: &Request<'_>) -> Result<(), Error> {
    dump::refuse_if_read_only();
    let target = name::creation_target(request.name);
    let name = QualifiedName { schema: target.schema, name: target.name };
    if RESERVED_SCHEMAS.contains(&name.schema.as_str()) {
        return Err(Error::Reserved(name.schema));
    }
    if target.is_taken {
        return Err(Error::Exists(name));
    }
    let analyzed = lower::analyze_user_query(request.query)?;
    if analyzed.follows_settings && !deparse::reads_nulls() {
        // A refresh reads arrays of its own, which need it.
        let words = "a query that may follow the setting array_nulls = off";
        let hint = "Set array_nulls to on.";
        return Err(Refusal::always(words, "a refresh sets it to on").hint(hint).into());
    }
    let is_differential = request.mode == RefreshMode::Differential;
    // The text has positions for a refusal; the view's rule has none.
    let lowered = is_differential.then(|| lower::lower_text(request.query)).transpose()?;
    check_privileges(&analyzed);
    let owner = name::current_role();
    if let Some(lowered) = lowered {
        access::check(&lowered.permissions, owner);
    }
    let _superuser = Identity::superuser();
    ddl::drop::forget_missing(&name);
    let id = catalog::insert(&New {
        name: &name,
        query: request.query,
        schedule: request.schedule,
        mode: request.mode,
    })?;
    let view = catalog::create_view(id, &analyzed.qualified_sql, owner)?;
    catalog::set_view(id, view);
    catalog::set_functions(id, &analyzed.functions_used);
    fault::point(Step::QueryStored);
    match request.mode {
        RefreshMode::Full => catalog::set_dependencies(id, &analyzed.relations),
        RefreshMode::Differential => {
            let lowered = lower::lower_view(view)?;
            warn(&lowered);
            warn_of_capture(&lowered);
            catalog::set_dependencies(id, &lowered.dependencies);
        }
    }
    refresh::create(id, owner, request.initialize)?;
    wake::scheduler_at_commit();
    Ok(())
}

/// Warns of sources that cannot be captured from the write-ahead log. `auto` does not insist on it.
fn warn_of_capture(lowered: &Lowered) {
    if settings::cdc_mode() != CdcMode::Wal {
        return;
    }
    let warn = |what: String, hint: &str| {
        pgrx::ereport!(WARNING, PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, what, hint);
    };
    if !decode::is_possible() {
        let what = "pg_stream.cdc_mode is wal, but changes are captured by triggers".to_owned();
        return warn(what, "Capture from the write-ahead log needs wal_level = logical.");
    }
    let tables = lowered.dependencies.iter().filter(|it| it.kind == RelationKind::Table);
    for table in tables.filter(|it| catalog::by_relation(it.oid).is_none()) {
        if let Some(obstacle) = capture::decoding::obstacle(table.oid) {
            let name = relation::display_name(table.oid);
            let what = format!("changes of {name} are captured by triggers: {obstacle}");
            warn(
                what,
                "Capture from the write-ahead log needs ALTER TABLE ... REPLICA IDENTITY FULL.",
            );
        }
    }
}

/// Warns of what the query means for those who read the stream table.
pub fn warn(lowered: &Lowered) {
    warn_of_stable_functions(lowered);
    warn_of_open_results(lowered);
}

fn warn_of_stable_functions(lowered: &Lowered) {
    if lowered.depends_on_moment {
        pgrx::ereport!(
            WARNING,
            PgSqlErrorCode::ERRCODE_WARNING,
            "the query uses STABLE functions whose results change by themselves",
            "Every refresh evaluates the whole query."
        );
    } else if lowered.uses_stable {
        pgrx::ereport!(
            WARNING,
            PgSqlErrorCode::ERRCODE_WARNING,
            "the query uses STABLE functions, whose results depend on settings",
            "A refresh uses the settings that were in force when the stream table was created."
        );
    }
}

fn warn_of_open_results(lowered: &Lowered) {
    if !lowered.open.is_empty() {
        pgrx::ereport!(
            WARNING,
            PgSqlErrorCode::ERRCODE_WARNING,
            format!(
                "the query leaves open an order of rows on which its result depends: {}",
                lowered.open.join(", ")
            ),
            "A refresh may choose other rows than the query does. Order by a unique key as well."
        );
    }
}

/// Starts the query as the current role, which checks its privileges on all that it reads.
fn check_privileges(analyzed: &Analyzed) {
    let _settings = PortableSettings::enter();
    spi::run(&format!("SELECT FROM ({}) AS q LIMIT 0", analyzed.qualified_sql), &[], |_| {});
}
