//! `pgstream.drop_stream_table`.

use pgrx::{pg_sys::panic::ErrorReport, prelude::*};
use pgstream_core::name::QualifiedName;
use pgstream_ivm::sql::quote_qualified;

use crate::{
    api::options,
    catalog,
    ddl::drop,
    error::Error,
    pg::text::Argument,
    pg::{name, relation, security::Identity, spi},
};

#[pg_extern(sql = false)]
fn drop_stream_table(name: Option<Argument>) -> Result<(), ErrorReport> {
    Ok(drop_by_name(options::required(name.as_deref(), "name")?)?)
}

/// Drops the table in the caller's name; the event trigger in `ddl::drop` removes everything else, as it does after a
/// plain DROP TABLE.
fn drop_by_name(name: &str) -> Result<(), Error> {
    let table = match catalog::lock_owned(name) {
        Err(Error::Undefined(_)) if forget_missing(name) => return Ok(()),
        found => found?,
    };
    let readers = catalog::readers(&table);
    if !readers.is_empty() {
        return Err(Error::HasReaders { name: table.name, readers });
    }
    {
        // Before the table, which those may read who write to its sources.
        let _superuser = Identity::superuser();
        drop::lock_sources(&[table.id]);
    }
    let (schema, name) = relation::name(table.relation);
    spi::run(&format!("DROP TABLE {}", quote_qualified(&schema, &name)), &[], |_| {});
    Ok(())
}

/// One that is there in the catalog alone has no owner any more.
fn forget_missing(name: &str) -> bool {
    if name::resolve(name).is_some() {
        return false;
    }
    let (Some(schema), name) = name::parts(name) else { return false };
    let _superuser = Identity::superuser();
    drop::forget_missing(&QualifiedName { schema, name })
}
