//! With whose rights a query reads its tables, and what row-level security makes of that.
//!
//! A table behind a view is read with the rights of the view's owner. The statements of a refresh read
//! each table as one role, so there are no rules for a table on which row-level security shows different
//! rows to several roles of one query. Nor are there for a view with `security_barrier` over tables that the
//! owner of the stream table may not read: the owner's expressions would be evaluated together with those of
//! the view, and get to see what it promises to hide. Such a query is evaluated as a whole, by a text that
//! names the views, so that PostgreSQL keeps roles and barriers apart; of the changes it is only seen that there
//! are any.

use std::collections::{BTreeMap, BTreeSet};

use super::inventory::Relation;
use super::refusal::Refusal;
use crate::pg::access::{self, ANYBODY, Permission, RowSecurity};
use crate::pg::name::current_role;
use crate::pg::node::{EntryKind, Kind, Query, Step};
use crate::pg::table;
use crate::pg::types::Oid;

fn role(permission: &Permission) -> Oid {
    if permission.role == Oid::INVALID { current_role() } else { permission.role }
}

/// Who reads each table, and whether that depends on rights that may change unseen.
pub fn readers(
    tables: &BTreeMap<u32, Relation>,
    permissions: &[Permission],
) -> Result<(Vec<(Oid, Oid)>, bool), Refusal> {
    let mut readers = Vec::new();
    let mut depends_on_role = false;
    for table in tables.values() {
        let of_table = permissions.iter().filter(|it| it.relation == table.oid);
        let roles: BTreeSet<u32> = of_table.map(|it| role(it).to_u32()).collect();
        let roles: Vec<Oid> = roles.into_iter().map(Oid::from).collect();
        let security: Vec<RowSecurity> =
            roles.iter().map(|it| access::row_security(table.oid, *it)).collect();
        depends_on_role |= security.iter().any(|it| *it != RowSecurity::Off);
        let reader = match (roles.as_slice(), security.contains(&RowSecurity::Applies)) {
            (_, false) => ANYBODY,
            ([only], true) => *only,
            (_, true) => {
                let words = format!("row-level security on {} for several roles", table.name);
                return Err(Refusal::without_rule(words));
            }
        };
        readers.push((table.oid, reader));
    }
    Ok((readers, depends_on_role))
}

/// As whom a query that is evaluated as a whole reads the tables that it names itself. PostgreSQL knows the
/// roles for those behind its views.
pub fn readers_in_text(tables: &BTreeMap<u32, Relation>) -> Vec<(Oid, Oid)> {
    tables.values().map(|it| (it.oid, current_role())).collect()
}

/// Views that promise to show nothing of the rows that they leave out.
pub struct Barriers {
    pub exist: bool,
    /// Why the query has no rules: a view that hides rows from whom the query belongs to.
    pub hiding: Option<Refusal>,
}

pub fn barriers(query: Query<'_>) -> Barriers {
    let mut barriers = Barriers { exist: false, hiding: None };
    query.node().visit(&mut |node| {
        if let Kind::Query(query) = node.kind() {
            for entry in query.entries() {
                if let (true, EntryKind::SubQuery(inner), Some(view)) =
                    (entry.is_barrier(), entry.kind(), entry.inlined_view())
                {
                    barriers.exist = true;
                    if !sees_all(inner) {
                        let words = format!("the security_barrier view {}", table::name(view));
                        barriers.hiding = Some(Refusal::without_rule(words));
                    }
                }
            }
        }
        Step::Into
    });
    barriers
}

/// Whether the current role may read all of what the query reads.
fn sees_all(query: Query<'_>) -> bool {
    let mut sees_all = true;
    query.node().visit(&mut |node| {
        if let Kind::Query(query) = node.kind() {
            let permissions = query.permissions();
            sees_all &= permissions.iter().all(|it| access::sees_all(it.relation, current_role()));
        }
        Step::Into
    });
    sees_all
}
