//! Having PostgreSQL parse, analyze and rewrite a query.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_void};
use std::marker::PhantomData;
use std::ptr;

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;
use pgrx::prelude::*;

use super::node::{Arena, ColumnRef, EntryKind, Kind, Node, Query, Step, Target, pointers};
use super::types::Oid;
use super::{original, raw, table};

/// What a text holds, when it is not one SELECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSelect {
    /// No statement.
    Nothing,
    /// More than one statement.
    Several,
    /// SELECT … INTO.
    Into,
    /// Some other statement.
    Other,
}

/// Parses and analyzes a text that should be one SELECT. Views are not expanded yet.
///
/// An error in the text is raised with its code, and with the text and the position in it.
///
/// Stream tables in it are without their columns in `hidden` wherever the text does not name these.
pub fn analyze<'a>(
    _arena: &'a Arena,
    text: &CStr,
    hidden: &[&str],
) -> Result<Query<'a>, NotSelect> {
    let _position = PositionKeeper::enter(text);
    // SAFETY: the trees are allocated in the arena, which is current.
    unsafe {
        let statements = pg_sys::pg_parse_query(text.as_ptr());
        let statements: Vec<_> = pointers::<pg_sys::RawStmt>(statements).collect();
        let statement = match statements.as_slice() {
            [] => return Err(NotSelect::Nothing),
            [only] => *only,
            _ => return Err(NotSelect::Several),
        };
        let select = (*statement).stmt;
        if (*select).type_ != NodeTag::T_SelectStmt {
            return Err(NotSelect::Other);
        }
        if !(*select.cast::<pg_sys::SelectStmt>()).intoClause.is_null() {
            return Err(NotSelect::Into);
        }
        raw::hide_columns(select, hidden);
        let query = pg_sys::parse_analyze_fixedparams(
            statement,
            text.as_ptr(),
            ptr::null(),
            0,
            ptr::null_mut(),
        );
        Node::from_ptr(query).map(Query).ok_or(NotSelect::Other)
    }
}

/// The query without those output columns that are columns with one of these names of stream
/// tables, which the `*` of a view meant. Set operations and GROUP BY are left alone.
pub fn without_outputs<'a>(query: Query<'a>, names: &[&str]) -> Query<'a> {
    let is_meant = |target: &Target<'a>| {
        !target.junk
            && names.contains(&target.name.as_str())
            && is_of_stream_table(query, target.expression)
    };
    let is_free = query.set_operations().is_none() && !query.has_aggregation();
    if !is_free || !query.targets().iter().any(is_meant) {
        return query;
    }
    let references: Vec<u32> =
        query.targets().iter().filter(|it| is_meant(it)).map(|it| it.reference).collect();
    // SAFETY: the copy is ours to change; the lists hold target entries and sort-group clauses.
    unsafe {
        let copy: *mut pg_sys::Query = pg_sys::copyObjectImpl(query.node().as_ptr()).cast();
        let mut targets = ptr::null_mut();
        let mut number = 0;
        let entries: Vec<_> = pointers::<pg_sys::TargetEntry>((*copy).targetList).collect();
        for (entry, target) in entries.into_iter().zip(query.targets()) {
            if !is_meant(&target) {
                number += 1;
                (*entry).resno = number;
                targets = pg_sys::lappend(targets, entry.cast());
            }
        }
        (*copy).targetList = targets;
        for list in [&raw mut (*copy).distinctClause, &raw mut (*copy).sortClause] {
            let mut kept = ptr::null_mut();
            let clauses: Vec<_> = pointers::<pg_sys::SortGroupClause>(*list).collect();
            for clause in clauses {
                let reference = (*clause).tleSortGroupRef;
                if !references.contains(&reference) {
                    kept = pg_sys::lappend(kept, clause.cast());
                }
            }
            *list = kept;
        }
        Node::from_ptr(copy).map_or(query, Query)
    }
}

/// Whether an expression is a column of a stream table, maybe through views and sub-queries.
fn is_of_stream_table<'a>(query: Query<'a>, expression: Node<'a>) -> bool {
    check_depth();
    let Kind::Column(column @ ColumnRef { levels_up: 0, .. }) = expression.kind() else {
        return false;
    };
    match query.entry(column.entry).map(|it| it.kind()) {
        Some(EntryKind::Relation { oid, kind: 'v', .. }) => {
            // SAFETY: the copy is in the context that the query is in.
            let inner = unsafe { query_of_view(oid) };
            inner.is_some_and(|it| is_output_of_stream_table(it, column.attribute))
        }
        Some(EntryKind::Relation { oid, .. }) => table::is_stream_table(oid),
        Some(EntryKind::SubQuery(inner)) => is_output_of_stream_table(inner, column.attribute),
        _ => false,
    }
}

fn is_output_of_stream_table(query: Query<'_>, attribute: i16) -> bool {
    let targets = query.targets();
    let target = usize::try_from(attribute - 1).ok().and_then(|it| targets.get(it));
    target.is_some_and(|it| is_of_stream_table(query, it.expression))
}

/// The query with the views that were expanded in it as views again.
pub fn with_views(query: Query<'_>) -> Query<'_> {
    // SAFETY: the copy is ours to change. The rewriter leaves in an entry what it needs to be a view.
    unsafe {
        let copy: *mut pg_sys::Query = pg_sys::copyObjectImpl(query.node().as_ptr()).cast();
        let Some(copy) = Node::from_ptr(copy) else { return query };
        copy.visit(&mut |node| {
            if let Kind::Query(query) = node.kind() {
                for entry in pointers::<pg_sys::RangeTblEntry>(query.get().rtable) {
                    if (*entry).rtekind == pg_sys::RTEKind::RTE_SUBQUERY
                        && (*entry).relid != pg_sys::InvalidOid
                    {
                        (*entry).rtekind = pg_sys::RTEKind::RTE_RELATION;
                        (*entry).subquery = ptr::null_mut();
                        (*entry).security_barrier = false;
                        (*entry).inh = true;
                    }
                }
            }
            Step::Into
        });
        Query(copy)
    }
}

/// The query of a view, as its rule holds it.
pub fn of_view<'a>(_arena: &'a Arena, view: Oid) -> Option<Query<'a>> {
    // SAFETY: the arena is current.
    unsafe { query_of_view(view) }
}

/// # Safety
/// The current memory context must live as long as the result.
unsafe fn query_of_view<'a>(view: Oid) -> Option<Query<'a>> {
    // SAFETY: the view is open while its query is copied.
    unsafe {
        let relation = pg_sys::relation_open(view, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let query = pg_sys::get_view_query(relation);
        let copy: *mut pg_sys::Query = pg_sys::copyObjectImpl(query.cast()).cast();
        pg_sys::relation_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        Node::from_ptr(copy).map(Query)
    }
}

/// The query with the views in it expanded and its relations locked.
///
/// SEARCH and CYCLE stay clauses: written out, they name fields of records that a text cannot
/// name. Those in a view are written out.
pub fn rewritten(query: Query<'_>) -> Option<Query<'_>> {
    // SAFETY: the rewriter may scribble on the tree, so it gets a copy, in which it leaves the
    // common table expressions where they are.
    unsafe {
        let copy: *mut pg_sys::Query = pg_sys::copyObjectImpl(query.node().as_ptr()).cast();
        pg_sys::AcquireRewriteLocks(copy, true, false);
        let ours = with_search_or_cycle(Node::from_ptr(copy)?);
        let clauses: Vec<_> =
            ours.iter().map(|cte| ((**cte).search_clause, (**cte).cycle_clause)).collect();
        ours.iter().for_each(|cte| forget_search_and_cycle(*cte));
        let list = pg_sys::pg_rewrite_query(copy);
        let first = Node::from_ptr(pointers::<pg_sys::Query>(list).next()?)?;
        // The rewriter leaves the clauses that it has written out.
        with_search_or_cycle(first).into_iter().for_each(|cte| forget_search_and_cycle(cte));
        for (cte, (search, cycle)) in ours.into_iter().zip(clauses) {
            (*cte).search_clause = search;
            (*cte).cycle_clause = cycle;
        }
        Some(Query(first))
    }
}

fn with_search_or_cycle(node: Node<'_>) -> Vec<*mut pg_sys::CommonTableExpr> {
    let mut found = Vec::new();
    node.visit(&mut |it| {
        if it.tag() == NodeTag::T_CommonTableExpr {
            let cte: *mut pg_sys::CommonTableExpr = it.as_ptr();
            // SAFETY: the tag says what it is.
            if unsafe { !(*cte).search_clause.is_null() || !(*cte).cycle_clause.is_null() } {
                found.push(cte);
            }
        }
        Step::Into
    });
    found
}

/// # Safety
///
/// The expression must be of a tree that is ours to change.
unsafe fn forget_search_and_cycle(cte: *mut pg_sys::CommonTableExpr) {
    // SAFETY: see above.
    unsafe {
        (*cte).search_clause = ptr::null_mut();
        (*cte).cycle_clause = ptr::null_mut();
    }
}

/// Whether the query refers to nothing of a query around it.
pub fn is_closed(query: Query<'_>) -> bool {
    // SAFETY: a copy is changed; PostgreSQL moves all references that lead outside one level up.
    unsafe {
        let copy = pg_sys::copyObjectImpl(query.node().as_ptr());
        pg_sys::IncrementVarSublevelsUp(copy.cast(), 1, 1);
        pg_sys::equal(copy, query.node().as_ptr())
    }
}

/// The query without HAVING, whose value is one more output, the last; `None` unless it has aggregates.
pub fn with_having_shown(query: Query<'_>) -> Option<Query<'_>> {
    // SAFETY: the flat copy is ours to change, and the list of targets is copied before it grows.
    unsafe {
        let original = query.get();
        if original.havingQual.is_null() || !original.hasAggs {
            return None;
        }
        let copy = pg_sys::palloc(size_of::<pg_sys::Query>()).cast::<pg_sys::Query>();
        ptr::copy_nonoverlapping(original, copy, 1);
        let number = query.targets().len() as pg_sys::AttrNumber + 1;
        let name = pg_sys::pstrdup(c"having".as_ptr());
        let target = pg_sys::makeTargetEntry((*copy).havingQual.cast(), number, name, false);
        (*copy).targetList = pg_sys::lappend(pg_sys::list_copy((*copy).targetList), target.cast());
        (*copy).havingQual = ptr::null_mut();
        Node::from_ptr(copy).map(Query)
    }
}

/// The query with the output columns of joins replaced by the columns of what is joined. Only
/// this query: sub-queries are left as they are.
pub fn without_join_aliases(query: Query<'_>) -> Query<'_> {
    // SAFETY: the flat copy is ours to change, and only its expressions are replaced by new ones.
    unsafe {
        let original = query.get();
        let copy = pg_sys::palloc(size_of::<pg_sys::Query>()).cast::<pg_sys::Query>();
        ptr::copy_nonoverlapping(original, copy, 1);
        let flat = move |node: *mut pg_sys::Node| {
            pg_sys::flatten_join_alias_vars(ptr::null_mut(), copy, node)
        };
        (*copy).targetList = flat((*copy).targetList.cast()).cast();
        (*copy).jointree = flat((*copy).jointree.cast()).cast();
        (*copy).havingQual = flat((*copy).havingQual);
        (*copy).rtable = pg_sys::list_copy((*copy).rtable);
        let entries = (*copy).rtable;
        let length = if entries.is_null() { 0 } else { (*entries).length as usize };
        for index in 0..length {
            let cell = (*entries).elements.add(index);
            let entry = (*cell).ptr_value.cast::<pg_sys::RangeTblEntry>();
            if (*entry).rtekind == pg_sys::RTEKind::RTE_GROUP {
                let group = pg_sys::palloc(size_of::<pg_sys::RangeTblEntry>())
                    .cast::<pg_sys::RangeTblEntry>();
                ptr::copy_nonoverlapping(entry, group, 1);
                (*group).groupexprs = flat((*group).groupexprs.cast()).cast();
                (*cell).ptr_value = group.cast();
            }
        }
        Node::from_ptr(copy).map_or(query, Query)
    }
}

/// The columns of tables in those joins of which the query, or one in it, reads a whole row.
pub fn columns_of_joined_rows(query: Query<'_>) -> Vec<(Oid, i16)> {
    let mut found = Vec::new();
    query.node().visit(&mut |node| {
        if let Kind::Query(around) = node.kind() {
            node.visit_levels(&mut |node, levels| {
                if let Kind::Column(column) = node.kind()
                    && column.attribute == 0
                    && column.levels_up + 1 == levels
                {
                    note_joined(around, column.entry, &mut found);
                }
                Step::Into
            });
        }
        Step::Into
    });
    found.sort_unstable_by_key(|it| (it.0.to_u32(), it.1));
    found.dedup();
    found
}

fn note_joined(query: Query<'_>, entry: usize, found: &mut Vec<(Oid, i16)>) {
    let Some(entry) = query.entry(entry) else { return };
    for column in entry.joined().into_iter().flat_map(Node::free_columns) {
        let Some(below) = query.entry(column.entry) else { continue };
        match below.kind() {
            EntryKind::Relation { oid, .. } if column.attribute > 0 => {
                found.push((oid, column.attribute));
            }
            // Those of a join within it are columns of it, or of what it joins, themselves.
            EntryKind::Join => note_joined(query, column.entry, found),
            _ => {}
        }
    }
}

/// The expression of a virtual generated column, over the columns of the same table, which is
/// entry `column.entry` of the range table.
pub fn generation_expression(table: Oid, column: ColumnRef) -> Option<Node<'static>> {
    // SAFETY: the table is open while the expression is built, which is a copy of our own.
    unsafe {
        let relation = pg_sys::relation_open(table, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let expression = pg_sys::build_generation_expression(relation, column.attribute.into());
        pg_sys::ChangeVarNodes(expression, 1, column.entry as i32, 0);
        pg_sys::relation_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        Node::from_ptr(expression)
    }
}

/// An expression with what it can be known to be now: an expression of constants is a constant.
pub fn folded(expression: Node<'_>) -> Node<'_> {
    // SAFETY: a valid tree in, a valid tree out.
    unsafe {
        let folded = pg_sys::eval_const_expressions(ptr::null_mut(), expression.as_ptr());
        Node::from_ptr(folded).unwrap_or(expression)
    }
}

/// The conjunction of conditions; `None` of none.
pub fn all_of<'a>(conditions: &[Node<'a>]) -> Option<Node<'a>> {
    let (first, rest) = conditions.split_first()?;
    if rest.is_empty() {
        return Some(*first);
    }
    // SAFETY: a list of expressions, allocated here.
    unsafe {
        let list = conditions
            .iter()
            .fold(ptr::null_mut(), |list, it| pg_sys::lappend(list, it.as_ptr::<c_void>()));
        Node::from_ptr(pg_sys::make_ands_explicit(list))
    }
}

/// Raises an error if the statement is to be cancelled.
pub fn check_for_interrupts() {
    pgrx::check_for_interrupts!();
}

/// Raises an error if the stack is nearly used up.
pub fn check_depth() {
    // SAFETY: may only raise an error.
    unsafe { pg_sys::check_stack_depth() };
}

thread_local! {
    /// Where in which text the error that is on its way was found.
    static FOUND: RefCell<Option<(CString, i32)>> = const { RefCell::new(None) };
}

/// Keeps the position of an error that PostgreSQL finds in `text`.
///
/// An error that crosses Rust loses its position. So a callback on PostgreSQL's error context
/// stack notes it when the error is found, and another one, left there while the stack unwinds,
/// adds it when the error is raised again on leaving the extension.
pub struct PositionKeeper<'a> {
    note: Box<pg_sys::ErrorContextCallback>,
    text: PhantomData<&'a CStr>,
}

impl<'a> PositionKeeper<'a> {
    pub fn enter(text: &'a CStr) -> Self {
        // SAFETY: the callback is boxed, so it stays where it is until `drop` takes it away.
        unsafe {
            let mut note = Box::new(pg_sys::ErrorContextCallback {
                previous: pg_sys::error_context_stack,
                callback: Some(note_position),
                arg: text.as_ptr().cast_mut().cast(),
            });
            pg_sys::error_context_stack = &raw mut *note;
            Self { note, text: PhantomData }
        }
    }

    /// Lets the error that is raised next point at a byte offset in the text.
    pub fn point_at(text: &CStr, offset: usize) {
        let before = text.to_bytes().get(..offset).unwrap_or_default();
        let characters = String::from_utf8_lossy(before).chars().count();
        FOUND.set(Some((text.to_owned(), characters as i32 + 1)));
        leave_callback();
    }
}

impl Drop for PositionKeeper<'_> {
    fn drop(&mut self) {
        // SAFETY: this callback is the top of the stack, as those above it are gone.
        unsafe { pg_sys::error_context_stack = self.note.previous };
        if std::thread::panicking() && FOUND.with_borrow(Option::is_some) {
            leave_callback();
        }
    }
}

/// The callback that adds the position. PostgreSQL drops it when the error is caught.
static mut ADD_POSITION: pg_sys::ErrorContextCallback = pg_sys::ErrorContextCallback {
    previous: ptr::null_mut(),
    callback: Some(add_position),
    arg: ptr::null_mut(),
};

fn leave_callback() {
    // SAFETY: a backend has one thread; the entry is static, and linked at most once: it may still be
    // there from an error that never left the extension.
    unsafe {
        let entry = &raw mut ADD_POSITION;
        original::take_away(entry);
        (*entry).previous = pg_sys::error_context_stack;
        pg_sys::error_context_stack = entry;
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn note_position(text: *mut c_void) {
    // SAFETY: called while an error is being raised; `text` is the keeper's.
    unsafe {
        let position = pg_sys::geterrposition();
        if position > 0 {
            FOUND.set(Some((CStr::from_ptr(text.cast()).to_owned(), position)));
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn add_position(_arg: *mut c_void) {
    if let Some((text, position)) = FOUND.take() {
        // SAFETY: called while an error is being raised; the text is copied.
        unsafe {
            pg_sys::internalerrposition(position);
            pg_sys::internalerrquery(text.as_ptr());
        }
    }
}
