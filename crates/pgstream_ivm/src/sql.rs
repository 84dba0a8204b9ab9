//! Printing plans and the statements of a refresh as SQL.
//!
//! The statements run with `search_path = pg_catalog, pg_temp`. A delta is an ephemeral relation
//! (see [`delta_name`]) with the source's columns and the weight `w`.

use crate::plan::Plan;

mod apply;
mod fixpoint;
mod head;
mod ident;
mod recursion;
mod select;
#[cfg(test)]
mod tests;
mod window;

pub use self::{
    apply::{Apply, Matching, apply},
    fixpoint::{FixpointStatements, fixpoint},
    head::{HeadStatements, PAIR_PREFIX, head, is_null},
    ident::{quote, quote_qualified},
    recursion::{RecursionStatements, recursion},
    select::{
        delta_column, delta_name, full_select, identified_delta, identified_rows, stored_rows,
    },
    window::{WindowStatements, window},
};

/// Where the output of a stage is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Qualified and quoted name of the table.
    pub table: String,
    /// For each column of the stage's output its quoted name.
    pub columns: Vec<String>,
    /// Quoted names and types of the state columns of the head's aggregates, in order.
    pub state: Vec<(String, String)>,
    /// The body of a deferred stage, which takes the place of the table.
    pub inline: Option<Plan>,
    /// Whether the table counts the rows of each group in `__pgs_count`.
    pub counted: bool,
}

/// The column that identifies a row of a storage.
pub const ROW_ID: &str = "__pgs_row_id";
/// The column with the number of rows of a group.
pub const COUNT: &str = "__pgs_count";
