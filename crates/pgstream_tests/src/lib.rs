//! Tests of the extension through SQL, on a running server.
//!
//! Start with [`check`]: tables, a query and changes; after each change the stream table must
//! hold what its query returns. [`Interleaving`] does the same for several sessions, and
//! [`Server`] is a server of one's own, to be crashed.
//! `scripts/with_server.sh` starts the shared server and says where it is.

mod database;
pub mod fuzz;
mod interleaving;
mod oracle;
mod orphans;
mod scenario;
mod server;
mod session;
pub mod soak;

pub use database::Database;
pub use interleaving::{Interleaving, REFRESH, Sessions, Step, check_interleavings};
pub use oracle::{
    Comparison, Difference, HistoryRow, difference, history_since, last_action, last_refresh_id,
};
pub use orphans::orphans;
pub use scenario::{Scenario, Watched, check, check_unless_refused, check_values};
pub use server::{Server, kill_9};
pub use session::{Session, SqlError};
