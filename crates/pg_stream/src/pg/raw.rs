//! A parsed query before its names are resolved: stream tables in it without their hidden columns.
//!
//! What `*`, NATURAL and a whole row mean is decided when names are resolved, for all columns that a
//! table has. So where a text has any of these, a stream table in FROM is replaced by a sub-query with
//! the columns that are meant.

use std::ffi::c_void;
use std::ptr;

use pgrx::pg_sys::{self, NodeTag};
use pgrx::prelude::*;

use super::lock::Lock;
use super::node::{pointers, text};
use super::source::Source;
use super::table;
use super::types::Oid;

/// Goes through a statement.
struct Walk<'h> {
    hidden: &'h [&'h str],
    /// Names of WITH items that are visible here.
    common_tables: Vec<String>,
    /// Names that stand alone where a column may be meant, or a whole row.
    single_names: Vec<String>,
    has_star: bool,
    /// Whether it only looks.
    is_search: bool,
}

/// Replaces stream tables in a parsed SELECT where the columns in `hidden` would come to light.
///
/// # Safety
/// The statement must be a valid tree that is ours to change.
pub(super) unsafe fn hide_columns(statement: *mut pg_sys::Node, hidden: &[&str]) {
    if hidden.is_empty() {
        return;
    }
    let mut walk = Walk {
        hidden,
        common_tables: Vec::new(),
        single_names: Vec::new(),
        has_star: false,
        is_search: true,
    };
    // SAFETY: by the caller's promise.
    unsafe {
        walk.node(statement);
        if walk.has_star || !walk.single_names.is_empty() {
            walk.is_search = false;
            walk.node(statement);
        }
    }
}

impl Walk<'_> {
    /// # Safety
    /// The pointer must be null or a node of the tree.
    unsafe fn node(&mut self, node: *mut pg_sys::Node) {
        if node.is_null() {
            return;
        }
        // SAFETY: each cast follows the tag.
        unsafe {
            match (*node).type_ {
                NodeTag::T_SelectStmt => self.select(node.cast()),
                // Seen with its SELECT.
                NodeTag::T_WithClause => {}
                NodeTag::T_ColumnRef => self.column(node.cast()),
                NodeTag::T_JoinExpr => {
                    self.children(node);
                    let join = &mut *node.cast::<pg_sys::JoinExpr>();
                    self.has_star |= join.isNatural;
                    join.larg = self.replaced(join.larg);
                    join.rarg = self.replaced(join.rarg);
                }
                _ => self.children(node),
            }
        }
    }

    /// # Safety
    /// As for [`Self::node`].
    unsafe fn children(&mut self, node: *mut pg_sys::Node) {
        let context = (&raw mut *self).cast();
        // SAFETY: the callback gets back exactly this value, and only during this call.
        unsafe { pg_sys::raw_expression_tree_walker_impl(node, Some(child), context) };
    }

    /// # Safety
    /// The pointer must be to a statement of the tree.
    unsafe fn select(&mut self, select: *mut pg_sys::SelectStmt) {
        super::query::check_depth();
        let outside = self.common_tables.len();
        // SAFETY: lists of a SELECT hold what they are named for.
        unsafe {
            if let Some(with) = (*select).withClause.as_ref() {
                let items: Vec<_> = pointers::<pg_sys::CommonTableExpr>(with.ctes).collect();
                let name = |it: &*mut pg_sys::CommonTableExpr| text((**it).ctename);
                if with.recursive {
                    self.common_tables.extend(items.iter().filter_map(name));
                }
                for item in &items {
                    self.node((**item).ctequery);
                    if !with.recursive {
                        self.common_tables.extend(name(item));
                    }
                }
            }
            self.children(select.cast());
            let list = (*select).fromClause;
            let length = if list.is_null() { 0 } else { (*list).length as usize };
            for index in 0..length {
                let cell = (*list).elements.add(index);
                (*cell).ptr_value = self.replaced((*cell).ptr_value.cast()).cast();
            }
        }
        self.common_tables.truncate(outside);
    }

    /// # Safety
    /// The pointer must be to a column reference of the tree.
    unsafe fn column(&mut self, column: *mut pg_sys::ColumnRef) {
        // SAFETY: the fields are strings, but for a star at the end.
        unsafe {
            let fields: Vec<_> = pointers::<pg_sys::Node>((*column).fields).collect();
            let is_star = |it: &*mut pg_sys::Node| (**it).type_ == NodeTag::T_A_Star;
            let name = |it: *mut pg_sys::Node| match (*it).type_ {
                NodeTag::T_String => Some((*it.cast::<pg_sys::String>()).sval),
                _ => None,
            };
            if self.is_search {
                self.has_star |= fields.last().is_some_and(is_star);
                if let [only] = fields[..] {
                    self.single_names.extend(name(only).and_then(|it| text(it)));
                }
                return;
            }
            // A sub-query has no schema.
            if let [schema, table, _] = fields[..]
                && let (Some(schema), Some(table)) = (name(schema), name(table))
                && let relation = pg_sys::makeRangeVar(schema, table, -1)
                && self.stream_table(relation).is_some()
            {
                (*column).fields = pg_sys::list_delete_first((*column).fields);
            }
        }
    }

    /// The item of FROM, or what stands for it.
    ///
    /// # Safety
    /// The pointer must be to a node of the tree.
    unsafe fn replaced(&self, item: *mut pg_sys::Node) -> *mut pg_sys::Node {
        // SAFETY: the cast follows the tag.
        unsafe {
            if self.is_search || (*item).type_ != NodeTag::T_RangeVar {
                return item;
            }
            let relation = item.cast::<pg_sys::RangeVar>();
            let alias = (*relation).alias.as_ref().map_or((*relation).relname, |it| it.aliasname);
            let is_named = text(alias).is_some_and(|alias| self.single_names.contains(&alias));
            if !self.has_star && !is_named {
                return item;
            }
            match self.stream_table(relation) {
                Some(oid) => self.sub_query(relation, oid).cast(),
                None => item,
            }
        }
    }

    /// # Safety
    /// The pointer must be to a valid node.
    unsafe fn stream_table(&self, relation: *mut pg_sys::RangeVar) -> Option<Oid> {
        // SAFETY: by the caller's promise; the look-up takes no lock and does not fail.
        unsafe {
            if (*relation).schemaname.is_null()
                && text((*relation).relname).is_some_and(|it| self.common_tables.contains(&it))
            {
                return None;
            }
            let oid = pg_sys::RangeVarGetRelidExtended(
                relation,
                pg_sys::NoLock as pg_sys::LOCKMODE,
                pg_sys::RVROption::RVR_MISSING_OK,
                None,
                ptr::null_mut(),
            );
            (oid != pg_sys::InvalidOid && table::is_stream_table(oid)).then_some(oid)
        }
    }

    /// # Safety
    /// `relation` must be a valid node that names the table `oid`.
    unsafe fn sub_query(
        &self,
        relation: *mut pg_sys::RangeVar,
        oid: Oid,
    ) -> *mut pg_sys::RangeSubselect {
        let columns = Source::open(oid, Lock::AccessShare).columns();
        let shown = columns.iter().filter(|it| !self.hidden.contains(&it.name.as_str()));
        // SAFETY: every node is allocated here, zeroed, and given its tag.
        unsafe {
            let mut targets = ptr::null_mut();
            for column in shown {
                let name = std::ffi::CString::new(column.name.as_str()).unwrap_or_default();
                let name = pg_sys::makeString(pg_sys::pstrdup(name.as_ptr()));
                let reference: *mut pg_sys::ColumnRef = made(NodeTag::T_ColumnRef);
                (*reference).fields = pg_sys::lappend(ptr::null_mut(), name.cast());
                (*reference).location = -1;
                let target: *mut pg_sys::ResTarget = made(NodeTag::T_ResTarget);
                (*target).val = reference.cast();
                (*target).location = -1;
                targets = pg_sys::lappend(targets, target.cast());
            }
            let select: *mut pg_sys::SelectStmt = made(NodeTag::T_SelectStmt);
            (*select).targetList = targets;
            let alias = match (*relation).alias {
                alias if alias.is_null() => pg_sys::makeAlias((*relation).relname, ptr::null_mut()),
                alias => alias,
            };
            (*relation).alias = ptr::null_mut();
            (*select).fromClause = pg_sys::lappend(ptr::null_mut(), relation.cast());
            let sub_query: *mut pg_sys::RangeSubselect = made(NodeTag::T_RangeSubselect);
            (*sub_query).subquery = select.cast();
            (*sub_query).alias = alias;
            sub_query
        }
    }
}

/// # Safety
/// `T` must be the node of this tag.
unsafe fn made<T>(tag: NodeTag) -> *mut T {
    // SAFETY: all zeroes are valid for every parse node, with the tag to be set.
    unsafe {
        let node = pg_sys::palloc0(size_of::<T>()).cast::<pg_sys::Node>();
        (*node).type_ = tag;
        node.cast()
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn child(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    // SAFETY: `context` comes from `children`; PostgreSQL hands us nodes of the tree.
    unsafe { (*context.cast::<Walk<'_>>()).node(node) };
    false
}
