//! How old the data of stream tables is, against what their schedules want.

use std::collections::HashMap;

use pgrx::{datum::TimestampWithTimeZone, iter::TableIterator, name};
use pgstream_core::{
    decide::{Schedules, Table},
    schedule::{Effective, Micros, Schedule},
    status::Status,
};

use crate::pg::{spi, time};

/// Of one stream table that has been populated.
pub struct Age {
    pub id: i64,
    pub name: (String, String),
    /// With CALCULATED replaced by what its readers need.
    pub schedule: Effective,
    /// The moment that the data is of.
    pub data: Micros,
    /// When it should have been refreshed; `None` if nothing asks for it.
    pub due: Option<Micros>,
    /// Whether somebody was told that the data is stale.
    pub told_stale: bool,
}

/// Those of all stream tables that have been populated.
pub fn all() -> Vec<Age> {
    let mut tables = Vec::new();
    let mut populated = HashMap::new();
    spi::run(include_str!("ages.sql"), &[], |row| {
        let text = |column| row.get::<String>(column);
        let id = row.get(0).expect("the primary key");
        tables.push(Table {
            id,
            schedule: text(3).and_then(|it| it.parse().ok()).unwrap_or(Schedule::Calculated),
            scheduled_at: 0,
            status: Status::Active,
            consecutive_errors: 0,
            reads: row.get(4).unwrap_or_default(),
            sources: Vec::new(),
        });
        if let Some(data) = row.get::<TimestampWithTimeZone>(5) {
            let name = (text(1).unwrap_or_default(), text(2).unwrap_or_default());
            let told_stale = row.get(6) == Some(true);
            populated.insert(id, (name, time::to_epoch(data), told_stale));
        }
    });
    let schedules = Schedules::new(tables);
    let age = |(position, table): (usize, &Table)| {
        let (name, data, told_stale) = populated.remove(&table.id)?;
        let schedule = schedules.effective(position).clone();
        let due = schedule.next_after(data);
        Some(Age { id: table.id, name, schedule, data, due, told_stale })
    };
    schedules.tables().iter().enumerate().filter_map(age).collect()
}

/// What the views call stale is past this time.
#[pgrx::pg_extern(sql = false)]
fn due_times()
-> TableIterator<'static, (name!(pgs_id, i64), name!(due_at, Option<TimestampWithTimeZone>))> {
    TableIterator::new(all().into_iter().map(|it| (it.id, it.due.map(time::from_epoch))))
}
