//! Building the query of a LATERAL item: `SELECT … FROM <entry> WHERE …`, for an entry of a range
//! table whose rows depend on nothing but columns of entries before it.

use std::ffi::CString;
use std::ptr;

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::node::{ColumnRef, Kind, Node, Query, Step, pointers};

/// `SELECT FROM <entry>`, with references to columns of `query` one level up. `None` for a kind of
/// entry that is no such item.
pub fn of_entry(query: Query<'_>, entry: usize) -> Option<Query<'_>> {
    let index = entry.checked_sub(1)?;
    // SAFETY: the entry is copied before it is changed, and so is what is below it. Which fields
    // are valid follows the kind.
    unsafe {
        let original = pointers::<pg_sys::RangeTblEntry>(query.get().rtable).nth(index)?;
        let copy = pg_sys::palloc(size_of::<pg_sys::RangeTblEntry>());
        let copy = copy.cast::<pg_sys::RangeTblEntry>();
        ptr::copy_nonoverlapping(original, copy, 1);
        let flat = |node: *mut pg_sys::Node| {
            let whole: *mut pg_sys::Query = query.node().as_ptr();
            let flat = pg_sys::flatten_join_alias_vars(ptr::null_mut(), whole, node);
            pg_sys::copyObjectImpl(flat.cast()).cast::<pg_sys::Node>()
        };
        let lifted = |node: *mut pg_sys::Node, least: i32| {
            pg_sys::IncrementVarSublevelsUp(node, 1, least);
            node
        };
        match (*copy).rtekind {
            pg_sys::RTEKind::RTE_FUNCTION => {
                (*copy).functions = lifted(flat((*copy).functions.cast()), 0).cast();
            }
            pg_sys::RTEKind::RTE_TABLEFUNC => {
                (*copy).tablefunc = lifted(flat((*copy).tablefunc.cast()), 0).cast();
            }
            pg_sys::RTEKind::RTE_SUBQUERY => {
                (*copy).subquery = lifted(flat((*copy).subquery.cast()), 1).cast();
            }
            _ => return None,
        }
        let reference = allocated::<pg_sys::RangeTblRef>(NodeTag::T_RangeTblRef);
        (*reference).rtindex = 1;
        let from = pg_sys::lappend(ptr::null_mut(), reference.cast());
        let select = allocated::<pg_sys::Query>(NodeTag::T_Query);
        (*select).commandType = pg_sys::CmdType::CMD_SELECT;
        (*select).canSetTag = true;
        (*select).rtable = pg_sys::lappend(ptr::null_mut(), copy.cast());
        (*select).jointree = pg_sys::makeFromExpr(from, ptr::null_mut());
        Node::from_ptr(select).map(Query)
    }
}

/// # Safety
/// `T` must be the struct of the tag.
unsafe fn allocated<T>(tag: NodeTag) -> *mut T {
    // SAFETY: a node starts with its tag, and zeros are valid for the rest.
    unsafe {
        let node = pg_sys::palloc0(size_of::<T>());
        (*node.cast::<pg_sys::Node>()).type_ = tag;
        node.cast()
    }
}

/// The item with a condition, which stands in the query around it, where the item is `entry`.
/// There must be no sub-query in the condition.
pub fn with_condition<'a>(item: Query<'a>, entry: usize, condition: Node<'a>) -> Query<'a> {
    // SAFETY: the copies are ours to change.
    unsafe {
        let select = pg_sys::copyObjectImpl(item.node().as_ptr()).cast::<pg_sys::Query>();
        let quals = pg_sys::copyObjectImpl(condition.as_ptr()).cast::<pg_sys::Node>();
        pg_sys::IncrementVarSublevelsUp(quals, 1, 0);
        if let Some(quals) = Node::from_ptr(quals) {
            quals.visit(&mut |node| {
                if let Kind::Column(ColumnRef { entry: of, levels_up: 1, .. }) = node.kind()
                    && of == entry
                {
                    make_own(node.as_ptr());
                }
                Step::Into
            });
        }
        (*(*select).jointree).quals = quals;
        Node::from_ptr(select).map_or(item, Query)
    }
}

/// Makes a column one of the item's entry.
///
/// # Safety
/// The pointer must be to a Var that may be changed.
unsafe fn make_own(var: *mut pg_sys::Var) {
    // SAFETY: by the caller's promise.
    unsafe {
        (*var).varno = 1;
        (*var).varlevelsup = 0;
        (*var).varnullingrels = ptr::null_mut();
        (*var).varnosyn = 0;
        (*var).varattnosyn = 0;
    }
}

/// The item with a select list: columns of its entry as the query around it refers to them.
pub fn with_outputs<'a>(item: Query<'a>, columns: &[Node<'a>]) -> Query<'a> {
    // SAFETY: the copies are ours to change, and the columns are Vars.
    unsafe {
        let select = pg_sys::copyObjectImpl(item.node().as_ptr()).cast::<pg_sys::Query>();
        let mut targets = ptr::null_mut();
        for (index, column) in columns.iter().enumerate() {
            let var = pg_sys::copyObjectImpl(column.as_ptr()).cast::<pg_sys::Var>();
            make_own(var);
            let name = CString::new(format!("c{index}")).expect("no NUL");
            let name = pg_sys::pstrdup(name.as_ptr());
            let number = index as pg_sys::AttrNumber + 1;
            let target = pg_sys::makeTargetEntry(var.cast(), number, name, false);
            targets = pg_sys::lappend(targets, target.cast());
        }
        (*select).targetList = targets;
        Node::from_ptr(select).map_or(item, Query)
    }
}

/// Gives the entries of a query other aliases.
///
/// # Safety
/// The query must be one that may be changed.
pub(super) unsafe fn rename(query: Query<'_>, aliases: &mut usize) {
    // SAFETY: the list holds entries, whose aliases are null or valid.
    unsafe {
        for entry in pointers::<pg_sys::RangeTblEntry>(query.get().rtable) {
            *aliases += 1;
            let name = CString::new(format!("i{aliases}")).expect("no NUL");
            let name = pg_sys::pstrdup(name.as_ptr());
            // The deparser prints no other alias for these, and none at all for unnamed joins.
            if (*entry).rtekind == pg_sys::RTEKind::RTE_TABLEFUNC && (*entry).alias.is_null() {
                (*entry).alias = pg_sys::makeAlias(name, ptr::null_mut());
            }
            for alias in [(*entry).alias, (*entry).eref] {
                if let Some(alias) = alias.as_mut() {
                    alias.aliasname = name;
                }
            }
        }
    }
}
