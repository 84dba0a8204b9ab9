//! With whose rights a query reads its tables, and what row-level security makes of that.
//!
//! A table behind a view is read with the rights of the view's owner. The statements of a refresh read
//! each table as one role, so there are no rules for a table on which row-level security shows different
//! rows to several roles of one query.
//!
//! A view shows some of what it reads, and hides the rest from an owner of the stream table who may not read
//! that otherwise. Rules store what is grouped, numbered or compared in between where the owner can read it,
//! and make the identity of rows of it. So there are rules for views that store nothing in between, and none
//! for other views over what the owner may not read. Nor are there for one of those with `security_barrier`:
//! the owner's expressions would be evaluated together with those of the view, and get to see rows that it
//! promises to hide.
//!
//! A query without rules is evaluated as a whole, by a text that names the views, so that PostgreSQL keeps
//! roles and barriers apart; of the changes it is only seen that there are any.

use std::collections::{BTreeMap, BTreeSet};

use super::inventory::Relation;
use super::refusal::Refusal;
use crate::pg::access::{self, ANYBODY, Permission, RowSecurity};
use crate::pg::name::current_role;
use crate::pg::node::{Entry, EntryKind, From, Join, Kind, Node, Query, Step};
use crate::pg::query::is_closed;
use crate::pg::types::Oid;
use crate::pg::{relation, table};

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

/// What was asked about the rights of the owner while a plan was made. Other answers may make another
/// plan, and of memberships no message tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights(Vec<Answer>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    permission: Permission,
    role: Oid,
    is_held: bool,
}

impl Rights {
    /// Whether the current role could read the same in its own name.
    pub fn suffice(&mut self, permission: Permission) -> bool {
        if let Some(known) = self.0.iter().find(|it| it.permission == permission) {
            return known.is_held;
        }
        let role = current_role();
        let is_held = permission.is_held_by(role);
        self.0.push(Answer { permission, role, is_held });
        is_held
    }

    /// Whether something would be answered otherwise by now.
    pub fn have_changed(&self) -> bool {
        let has_changed = |it: &Answer| {
            !relation::exists(it.permission.relation)
                || it.permission.is_held_by(it.role) != it.is_held
        };
        self.0.iter().any(has_changed)
    }
}

/// Why the query has no rules: a view over what the current role may not read, which has `security_barrier`
/// or is more than a selection of rows and columns.
pub fn hiding_view(query: Query<'_>, rights: &mut Rights) -> Option<Refusal> {
    let mut hiding = None;
    query.node().visit(&mut |node| {
        let Kind::Query(query) = node.kind() else { return Step::Into };
        for entry in query.entries() {
            let Some((view, inner)) = view(entry) else { continue };
            if hiding.is_some() || !hides(inner, rights) {
                continue;
            }
            let words = if entry.is_barrier() {
                format!("the security_barrier view {}", table::name(view))
            } else if !is_simple(inner) {
                format!("the view {} over what the owner may not read", table::name(view))
            } else {
                continue;
            };
            hiding = Some(Refusal::without_rule(words));
        }
        Step::Into
    });
    hiding
}

fn view(entry: Entry<'_>) -> Option<(Oid, Query<'_>)> {
    match (entry.inlined_view(), entry.kind()) {
        (Some(view), EntryKind::SubQuery(query)) => Some((view, query)),
        _ => None,
    }
}

/// Whether the query of a view reads what the current role may not read: neither itself nor, where it is
/// a view, what that reads.
pub fn hides(query: Query<'_>, rights: &mut Rights) -> bool {
    let mut hides = false;
    let mut views = Vec::new();
    query.node().visit(&mut |node| {
        let Kind::Query(query) = node.kind() else { return Step::Into };
        if views.iter().any(|it: &Node<'_>| it.is(node)) {
            return Step::Over;
        }
        for entry in query.entries() {
            let inner = view(entry).map(|it| it.1);
            views.extend(inner.map(Query::node));
            let is_allowed = query.permission(entry).is_none_or(|it| rights.suffice(it));
            hides |= !is_allowed && inner.is_none_or(|it| self::hides(it, rights));
        }
        Step::Into
    });
    hides
}

/// Whether the query of a view only selects from tables that it joins. Then nothing but what it shows is
/// ever stored. Views in it are looked at by themselves.
fn is_simple(query: Query<'_>) -> bool {
    let is_simple = |entry: Entry<'_>| match entry.kind() {
        EntryKind::SubQuery(inner) => {
            entry.inlined_view().is_some() || (is_closed(inner) && self::is_simple(inner))
        }
        EntryKind::Relation { .. } | EntryKind::Join | EntryKind::Values { .. } => true,
        EntryKind::Function
        | EntryKind::TableFunction
        | EntryKind::CommonTable { .. }
        | EntryKind::Group(_)
        | EntryKind::Other => false,
    };
    let has_more = query.has_aggregation()
        || query.has_windows()
        || query.has_set_returning_targets()
        || query.has_sub_links()
        || query.has_common_tables()
        || query.set_operations().is_some()
        || query.limit().is_some()
        || query.offset().is_some()
        || !query.distinct().is_empty();
    !has_more
        && query.from().is_none_or(has_inner_joins_only)
        && query.entries().into_iter().all(is_simple)
}

fn has_inner_joins_only(tree: Node<'_>) -> bool {
    match tree.as_from() {
        Some(From::Entry(_)) => true,
        Some(From::Items { items, .. }) => items.into_iter().all(has_inner_joins_only),
        Some(From::Join { kind, left, right, .. }) => {
            kind == Join::Inner && has_inner_joins_only(left) && has_inner_joins_only(right)
        }
        None => false,
    }
}
