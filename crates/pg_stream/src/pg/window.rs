//! Windows of a query: PARTITION BY, ORDER BY and frame of an OVER clause, and the calls over them.

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::deparse::PortableSettings;
use super::node::{Node, Query, SortGroup, pointers, sort_groups, text};
use super::types::Oid;

/// A window.
#[derive(Clone, Copy)]
pub struct Window<'a>(&'a pg_sys::WindowClause);

/// A call of a window function. JSON_ARRAYAGG and JSON_OBJECTAGG are one with a node around it.
#[derive(Clone, Copy)]
pub struct WindowCall<'a> {
    pub(super) whole: Node<'a>,
    pub(super) call: Node<'a>,
}

impl<'a> WindowCall<'a> {
    fn get(self) -> &'a pg_sys::WindowFunc {
        // SAFETY: `call` is a node with this tag.
        unsafe { &*self.call.as_ptr() }
    }

    /// The call as an expression.
    pub fn node(self) -> Node<'a> {
        self.whole
    }

    /// `pg_proc.oid`.
    pub fn function(self) -> Oid {
        self.get().winfnoid
    }

    /// The window that the call is over.
    pub fn window(self, query: Query<'a>) -> Option<Window<'a>> {
        // SAFETY: the list holds window clauses that live as long as the query.
        let mut windows = unsafe {
            pointers::<pg_sys::WindowClause>(query.get().windowClause).map(|it| Window(&*it))
        };
        windows.find(|it| it.0.winref == self.get().winref)
    }
}

/// Functions that number the rows of a window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ranking {
    RowNumber,
    Rank,
}

impl Ranking {
    /// A call of the function.
    pub fn call<'a>(self) -> WindowCall<'a> {
        let function = match self {
            Self::RowNumber => pg_sys::F_ROW_NUMBER,
            Self::Rank => pg_sys::F_RANK_,
        };
        // SAFETY: the allocation is of the right size, and zeroes are valid in all other fields.
        unsafe {
            let call =
                pg_sys::palloc0(size_of::<pg_sys::WindowFunc>()).cast::<pg_sys::WindowFunc>();
            (*call).xpr.type_ = NodeTag::T_WindowFunc;
            (*call).winfnoid = function.into();
            (*call).wintype = pg_sys::INT8OID;
            (*call).location = -1;
            let node = Node::from_ptr(call).expect("palloc0 does not return null");
            WindowCall { whole: node, call: node }
        }
    }
}

impl<'a> Window<'a> {
    /// The items of PARTITION BY.
    pub fn partition(self) -> Vec<SortGroup> {
        // SAFETY: the list holds sort-group clauses.
        unsafe { sort_groups(self.0.partitionClause) }
    }

    /// The items of ORDER BY.
    pub fn order(self) -> Vec<SortGroup> {
        // SAFETY: the list holds sort-group clauses.
        unsafe { sort_groups(self.0.orderClause) }
    }

    /// Whether the frame counts rows.
    pub fn has_row_frame(self) -> bool {
        self.0.frameOptions as u32 & pg_sys::FRAMEOPTION_ROWS != 0
    }

    /// The expressions that say how far the frame reaches.
    pub fn frame_offsets(self) -> Vec<Node<'a>> {
        let offsets = [self.0.startOffset, self.0.endOffset];
        // SAFETY: expressions or null.
        offsets.into_iter().filter_map(|it| unsafe { Node::from_ptr(it) }).collect()
    }

    fn new(partition: *mut pg_sys::List, order: *mut pg_sys::List) -> Self {
        // SAFETY: the allocation is of the right size, and zeroes are valid in all other fields.
        unsafe {
            let size = size_of::<pg_sys::WindowClause>();
            let clause = pg_sys::palloc0(size).cast::<pg_sys::WindowClause>();
            (*clause).type_ = NodeTag::T_WindowClause;
            (*clause).partitionClause = partition;
            (*clause).orderClause = order;
            (*clause).frameOptions = pg_sys::FRAMEOPTION_DEFAULTS as i32;
            Self(&*clause)
        }
    }
}

impl<'a> Query<'a> {
    /// ORDER BY.
    pub fn order(self) -> Vec<SortGroup> {
        // SAFETY: the list holds sort-group clauses.
        unsafe { sort_groups(self.get().sortClause) }
    }

    /// PARTITION BY what DISTINCT ON names, ORDER BY as the query.
    pub fn distinct_window(self) -> Window<'a> {
        Window::new(self.get().distinctClause, self.get().sortClause)
    }

    /// ORDER BY as the query.
    pub fn order_window(self) -> Window<'a> {
        Window::new(std::ptr::null_mut(), self.get().sortClause)
    }

    /// FETCH FIRST … WITH TIES.
    pub fn limit_has_ties(self) -> bool {
        self.get().limitOption == pg_sys::LimitOption::LIMIT_OPTION_WITH_TIES
    }
}

/// The list of ORDER BY of a window whose items refer to `values`; `None` where there is none.
pub fn order_text(window: Window<'_>, values: &[(u32, Node<'_>)]) -> Option<String> {
    if window.order().is_empty() {
        return None;
    }
    let order = Window::new(std::ptr::null_mut(), window.0.orderClause);
    let text = call_text(Ranking::RowNumber.call(), order, values, &[]);
    let list = text.strip_prefix("row_number() OVER (ORDER BY ")?.strip_suffix(')')?;
    Some(list.to_owned())
}

/// The text of `call` over `window`, whose items refer to `values`. Columns are inputs.
pub fn call_text(
    call: WindowCall<'_>,
    window: Window<'_>,
    values: &[(u32, Node<'_>)],
    domain: &[Node<'_>],
) -> String {
    const REFERENCE: u32 = 1;
    // Above all that a query can have.
    const FIRST_OF_DOMAIN: u32 = 1 << 20;
    let _settings = PortableSettings::enter();
    // SAFETY: copies of valid trees make up a SELECT without FROM, as the deparser expects it. Only
    // the copies are changed. The window function in the copied call is the first node with its tag.
    unsafe {
        let whole: *mut pg_sys::Node = pg_sys::copyObjectImpl(call.whole.as_ptr()).cast();
        let mut function: *mut pg_sys::WindowFunc = whole.cast();
        if (*whole).type_ == NodeTag::T_JsonConstructorExpr {
            function = (*whole.cast::<pg_sys::JsonConstructorExpr>()).func.cast();
        }
        (*function).winref = REFERENCE;
        let clause = pg_sys::copyObjectImpl((&raw const *window.0).cast());
        let clause = clause.cast::<pg_sys::WindowClause>();
        (*clause).winref = REFERENCE;
        (*clause).name = std::ptr::null_mut();
        (*clause).refname = std::ptr::null_mut();
        (*clause).copiedOrder = false;
        let shown = pg_sys::makeTargetEntry(whole.cast(), 1, std::ptr::null_mut(), false);
        let mut targets = pg_sys::lappend(std::ptr::null_mut(), shown.cast());
        let domain = (FIRST_OF_DOMAIN..).zip(domain.iter().copied());
        for (reference, _) in domain.clone() {
            let item = pg_sys::palloc0(size_of::<pg_sys::SortGroupClause>());
            let item = item.cast::<pg_sys::SortGroupClause>();
            (*item).type_ = NodeTag::T_SortGroupClause;
            (*item).tleSortGroupRef = reference;
            (*clause).partitionClause = pg_sys::lcons(item.cast(), (*clause).partitionClause);
        }
        for (number, (reference, value)) in (2..).zip(values.iter().copied().chain(domain)) {
            let value = pg_sys::copyObjectImpl(value.as_ptr());
            let name = std::ptr::null_mut();
            let target = pg_sys::makeTargetEntry(value.cast(), number, name, true);
            (*target).ressortgroupref = reference;
            targets = pg_sys::lappend(targets, target.cast());
        }
        let query = pg_sys::palloc0(size_of::<pg_sys::Query>()).cast::<pg_sys::Query>();
        (*query).type_ = NodeTag::T_Query;
        (*query).commandType = pg_sys::CmdType::CMD_SELECT;
        (*query).canSetTag = true;
        (*query).hasWindowFuncs = true;
        (*query).targetList = targets;
        (*query).windowClause = pg_sys::lappend(std::ptr::null_mut(), clause.cast());
        (*query).jointree = pg_sys::makeFromExpr(std::ptr::null_mut(), std::ptr::null_mut());
        let text = text(pg_sys::pg_get_querydef(query, false)).unwrap_or_default();
        let call = text.trim_start().strip_prefix("SELECT ");
        call.expect("a SELECT is printed as one").to_owned()
    }
}
