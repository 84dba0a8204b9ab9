//! The eight tables, with the keys and indexes that the queries need, loaded by COPY.

use std::fmt::Display;
use std::io::Write;

use postgres::Client;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};

use crate::Result;

const TABLES: &str = include_str!("tables.sql");
const INDEXES: &str = include_str!("indexes.sql");

/// Creates and fills the tables at a scale factor (1 is six million lineitems).
pub fn load(client: &mut Client, scale: f64) -> Result<u64> {
    client.batch_execute(TABLES)?;
    let rows = [
        copy(client, "region", RegionGenerator::new(scale, 1, 1).iter())?,
        copy(client, "nation", NationGenerator::new(scale, 1, 1).iter())?,
        copy(client, "supplier", SupplierGenerator::new(scale, 1, 1).iter())?,
        copy(client, "part", PartGenerator::new(scale, 1, 1).iter())?,
        copy(client, "partsupp", PartSuppGenerator::new(scale, 1, 1).iter())?,
        copy(client, "customer", CustomerGenerator::new(scale, 1, 1).iter())?,
        copy(client, "orders", OrderGenerator::new(scale, 1, 1).iter())?,
        copy(client, "lineitem", LineItemGenerator::new(scale, 1, 1).iter())?,
    ];
    client.batch_execute(INDEXES)?;
    client.batch_execute("VACUUM ANALYZE")?;
    Ok(rows.iter().sum())
}

/// Copies rows, which print themselves with '|' after each value.
fn copy(client: &mut Client, table: &str, rows: impl Iterator<Item = impl Display>) -> Result<u64> {
    let statement = format!("COPY {table} FROM STDIN WITH (DELIMITER '|')");
    let mut writer = client.copy_in(&statement)?;
    for row in rows {
        writeln!(writer, "{}", row.to_string().trim_end_matches('|'))?;
    }
    Ok(writer.finish()?)
}
