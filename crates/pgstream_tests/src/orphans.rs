//! What the catalog should never hold: parts of stream tables that belong to none, and the reverse.

use crate::session::{Session, SqlError};

/// Every orphan, in words; none when all is well.
pub fn orphans(session: &mut Session) -> Result<Vec<String>, SqlError> {
    session.try_rows(include_str!("orphans.sql"))
}
