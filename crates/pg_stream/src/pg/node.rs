//! Safe views of PostgreSQL's analyzed query trees.
//!
//! Everything lives in an [`Arena`], a memory context of its own: a view borrows from it and so
//! cannot outlive the tree. Trees are never changed in place; [`Node::replace`] builds a new one.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;
use pgrx::prelude::*;

use super::access::Permission;
use super::item;
use super::types::Oid;
use super::window::WindowCall;

/// A memory context that is current while the value lives, and that goes with it.
pub struct Arena {
    context: pg_sys::MemoryContext,
    outside: pg_sys::MemoryContext,
}

impl Arena {
    /// Makes a context below the current one and switches to it.
    pub fn enter() -> Self {
        // SAFETY: the current context is valid, and the new one is its child.
        unsafe {
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"pg_stream query tree".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            Self { context, outside: pg_sys::MemoryContextSwitchTo(context) }
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `outside` was current when the arena was made and outlives it, being its parent.
        unsafe {
            pg_sys::MemoryContextSwitchTo(self.outside);
            pg_sys::MemoryContextDelete(self.context);
        }
    }
}

/// Any node of a tree.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    pointer: NonNull<pg_sys::Node>,
    arena: PhantomData<&'a Arena>,
}

/// What [`Node::visit`] does after a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Go on with its children.
    Into,
    /// Go on with its siblings.
    Over,
}

/// A reference to a column of the range table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ColumnRef {
    /// Position in the range table, from 1.
    pub entry: usize,
    /// The attribute number: 0 is the whole row, negative a system column.
    pub attribute: i16,
    /// 0 is the query itself, 1 the one around it.
    pub levels_up: u32,
}

/// The kinds of expression that lowering tells apart.
pub enum Kind<'a> {
    /// A column of the range table.
    Column(ColumnRef),
    /// A column of a plan's input, put there by [`input`].
    Input(usize),
    /// A literal.
    Constant { null: bool },
    /// A function or operator with positional arguments.
    Call { function: Oid, arguments: Vec<Node<'a>> },
    /// An aggregate call.
    Aggregate(Aggregate<'a>),
    /// AND, OR, NOT.
    Boolean { conjunction: bool, arguments: Vec<Node<'a>> },
    /// A change of type that keeps the value.
    Relabel(Node<'a>),
    /// The possible results of a CASE; without ELSE there is `None` among them.
    Case(Vec<Option<Node<'a>>>),
    /// COALESCE.
    Coalesce(Vec<Node<'a>>),
    /// IS NULL, IS TRUE, IS DISTINCT FROM and such: never NULL.
    Test,
    /// A field of a row value.
    Field(Node<'a>),
    /// A row made of values, anonymous and with names other than those that ROW(…) gives, or not.
    Row { is_named: bool },
    /// GROUPING(…), with what its arguments are referred to by in GROUP BY.
    Grouping(Vec<u32>),
    /// A window function.
    Window(WindowCall<'a>),
    /// A sub-query in an expression, with the words for it.
    SubLink(&'static str),
    /// A query.
    Query(Query<'a>),
    /// Anything else.
    Other,
}

impl<'a> Node<'a> {
    /// # Safety
    /// The pointer, if not null, must point to a node that lives as long as the arena.
    pub(super) unsafe fn from_ptr<T>(pointer: *mut T) -> Option<Self> {
        NonNull::new(pointer.cast()).map(|pointer| Self { pointer, arena: PhantomData })
    }

    /// Whether it is this very node, not only one like it.
    pub fn is(self, other: Self) -> bool {
        self.pointer == other.pointer
    }

    pub(super) fn as_ptr<T>(self) -> *mut T {
        self.pointer.as_ptr().cast()
    }

    pub(super) fn tag(self) -> NodeTag {
        // SAFETY: every node starts with its tag.
        unsafe { self.pointer.as_ref() }.type_
    }

    /// # Safety
    /// The node's tag must be that of `T`.
    unsafe fn cast<T>(self) -> &'a T {
        // SAFETY: by the caller's promise; the node lives as long as the arena.
        unsafe { &*self.as_ptr::<T>() }
    }

    /// Which kind of node this is, with what lowering needs of it.
    pub fn kind(self) -> Kind<'a> {
        // SAFETY: each cast follows the tag.
        unsafe {
            match self.tag() {
                NodeTag::T_Var => {
                    let var = self.cast::<pg_sys::Var>();
                    Kind::Column(ColumnRef {
                        entry: var.varno as usize,
                        attribute: var.varattno,
                        levels_up: var.varlevelsup,
                    })
                }
                NodeTag::T_Param => Kind::Input(self.cast::<pg_sys::Param>().paramid as usize - 1),
                NodeTag::T_Const => {
                    Kind::Constant { null: self.cast::<pg_sys::Const>().constisnull }
                }
                NodeTag::T_FuncExpr => {
                    let call = self.cast::<pg_sys::FuncExpr>();
                    Kind::Call { function: call.funcid, arguments: nodes(call.args) }
                }
                NodeTag::T_OpExpr => {
                    let call = self.cast::<pg_sys::OpExpr>();
                    Kind::Call { function: call.opfuncid, arguments: nodes(call.args) }
                }
                NodeTag::T_Aggref => Kind::Aggregate(Aggregate { whole: self, call: self }),
                NodeTag::T_JsonConstructorExpr => {
                    let call = Self::from_ptr(self.cast::<pg_sys::JsonConstructorExpr>().func);
                    match call.map(|it| (it, it.tag())) {
                        Some((call, NodeTag::T_Aggref)) => {
                            Kind::Aggregate(Aggregate { whole: self, call })
                        }
                        Some((call, NodeTag::T_WindowFunc)) => {
                            Kind::Window(WindowCall { whole: self, call })
                        }
                        _ => Kind::Other,
                    }
                }
                NodeTag::T_BoolExpr => {
                    let expression = self.cast::<pg_sys::BoolExpr>();
                    Kind::Boolean {
                        conjunction: expression.boolop == pg_sys::BoolExprType::AND_EXPR,
                        arguments: nodes(expression.args),
                    }
                }
                NodeTag::T_RelabelType => {
                    let arg = self.cast::<pg_sys::RelabelType>().arg;
                    Self::from_ptr(arg).map_or(Kind::Other, Kind::Relabel)
                }
                NodeTag::T_CaseExpr => {
                    let case = self.cast::<pg_sys::CaseExpr>();
                    let mut results: Vec<_> = pointers::<pg_sys::CaseWhen>(case.args)
                        .map(|it| Self::from_ptr((*it).result))
                        .collect();
                    results.push(Self::from_ptr(case.defresult));
                    Kind::Case(results)
                }
                NodeTag::T_CoalesceExpr => {
                    Kind::Coalesce(nodes(self.cast::<pg_sys::CoalesceExpr>().args))
                }
                NodeTag::T_NullTest | NodeTag::T_BooleanTest | NodeTag::T_DistinctExpr => {
                    Kind::Test
                }
                NodeTag::T_FieldSelect => {
                    let arg = self.cast::<pg_sys::FieldSelect>().arg;
                    Self::from_ptr(arg).map_or(Kind::Other, Kind::Field)
                }
                NodeTag::T_RowExpr => {
                    let row = self.cast::<pg_sys::RowExpr>();
                    let names = pointers::<pg_sys::String>(row.colnames);
                    let is_other = |(number, name): (usize, *mut pg_sys::String)| {
                        text((*name).sval) != Some(format!("f{number}"))
                    };
                    let is_named = (1..).zip(names).any(is_other);
                    Kind::Row { is_named: row.row_typeid == pg_sys::RECORDOID && is_named }
                }
                NodeTag::T_GroupingFunc => {
                    Kind::Grouping(references(self.cast::<pg_sys::GroupingFunc>().refs))
                }
                NodeTag::T_WindowFunc => Kind::Window(WindowCall { whole: self, call: self }),
                NodeTag::T_SubLink => {
                    Kind::SubLink(sub_link_words(self.cast::<pg_sys::SubLink>().subLinkType))
                }
                NodeTag::T_Query => Kind::Query(Query(self)),
                _ => Kind::Other,
            }
        }
    }

    /// The expression's result type.
    pub fn type_oid(self) -> Oid {
        // SAFETY: the node is an expression tree.
        unsafe { pg_sys::exprType(self.as_ptr()) }
    }

    /// The type of the value that the node makes, if it can be another one than those of its parts.
    pub fn made_type(self) -> Option<Oid> {
        let makes_one = matches!(
            self.tag(),
            NodeTag::T_Var
                | NodeTag::T_Const
                | NodeTag::T_Param
                | NodeTag::T_Aggref
                | NodeTag::T_WindowFunc
                | NodeTag::T_FuncExpr
                | NodeTag::T_OpExpr
                | NodeTag::T_SubscriptingRef
                | NodeTag::T_FieldSelect
                | NodeTag::T_RelabelType
                | NodeTag::T_CoerceViaIO
                | NodeTag::T_ArrayCoerceExpr
                | NodeTag::T_ConvertRowtypeExpr
                | NodeTag::T_CoerceToDomain
                | NodeTag::T_RowExpr
                | NodeTag::T_JsonExpr
        );
        makes_one.then(|| self.type_oid())
    }

    /// The expression's type modifier, or -1.
    pub fn typmod(self) -> i32 {
        // SAFETY: the node is an expression tree.
        unsafe { pg_sys::exprTypmod(self.as_ptr()) }
    }

    /// The collation of the expression's result, or 0.
    pub fn collation(self) -> Oid {
        // SAFETY: the node is an expression tree.
        unsafe { pg_sys::exprCollation(self.as_ptr()) }
    }

    /// The byte offset in the query's text, where it is known.
    pub fn location(self) -> Option<i32> {
        // SAFETY: the node is an expression tree.
        let location = unsafe { pg_sys::exprLocation(self.as_ptr()) };
        (location >= 0).then_some(location)
    }

    /// Whether two trees mean the same, wherever they stand in the text.
    pub fn equals(self, other: Self) -> bool {
        // SAFETY: both are valid trees.
        unsafe { pg_sys::equal(self.as_ptr(), other.as_ptr()) }
    }

    /// The text that the type's output function gives for a literal, unless it is NULL.
    pub fn constant_text(self) -> Option<String> {
        if self.tag() != NodeTag::T_Const {
            return None;
        }
        // SAFETY: the tag was checked, and the value is of its type.
        unsafe {
            let constant = self.cast::<pg_sys::Const>();
            if constant.constisnull {
                return None;
            }
            let (mut output, mut varlena) = (pg_sys::InvalidOid, false);
            pg_sys::getTypeOutputInfo(constant.consttype, &mut output, &mut varlena);
            text(pg_sys::OidOutputFunctionCall(output, constant.constvalue))
        }
    }

    /// A literal's value, when it is an integer.
    pub fn constant_i32(self) -> Option<i32> {
        match self.type_oid() {
            pg_sys::INT4OID => self.constant_text()?.parse().ok(),
            _ => None,
        }
    }

    /// Calls `f` on this node and, as it says, on what is below it: expressions, and for queries
    /// everything inside them. Parents come before children, which come in order.
    pub fn visit(self, f: &mut dyn FnMut(Node<'a>) -> Step) {
        let mut waiting = vec![self];
        while let Some(node) = waiting.pop() {
            if f(node) == Step::Into {
                let children = waiting.len();
                node.push_children(&mut waiting);
                waiting[children..].reverse();
            }
        }
    }

    /// As [`Node::visit`], with the number of queries around each node, within this one.
    pub fn visit_levels(self, f: &mut dyn FnMut(Node<'a>, u32) -> Step) {
        let mut waiting = vec![(self, 0)];
        let mut children = Vec::new();
        while let Some((node, levels)) = waiting.pop() {
            if f(node, levels) == Step::Into {
                let levels = levels + u32::from(node.tag() == NodeTag::T_Query);
                node.push_children(&mut children);
                waiting.extend(children.drain(..).rev().map(|it| (it, levels)));
            }
        }
    }

    fn push_children(self, into: &mut Vec<Node<'a>>) {
        let context = (&raw mut *into).cast();
        // SAFETY: the callback gets back exactly this vector, and only during this call.
        unsafe {
            if self.tag() == NodeTag::T_Query {
                pg_sys::query_tree_walker_impl(self.as_ptr(), Some(child_callback), context, 0);
            } else {
                pg_sys::expression_tree_walker_impl(self.as_ptr(), Some(child_callback), context);
            }
        }
    }

    /// The columns that an expression or a query takes from around it: those of the expression's own
    /// query have level 0. What sub-queries take from their own range tables is not among them.
    pub fn free_columns(self) -> Vec<ColumnRef> {
        self.free_column_nodes().into_iter().map(|it| it.0).collect()
    }

    /// The same, each with its node.
    pub fn free_column_nodes(self) -> Vec<(ColumnRef, Node<'a>)> {
        let mut columns = Vec::new();
        let mut waiting = vec![(self, 0)];
        while let Some((node, depth)) = waiting.pop() {
            if let Kind::Column(column) = node.kind() {
                if let Some(levels_up) = column.levels_up.checked_sub(depth) {
                    columns.push((ColumnRef { levels_up, ..column }, node));
                }
                continue;
            }
            let depth = depth + u32::from(node.tag() == NodeTag::T_Query);
            let mut children = Vec::new();
            node.push_children(&mut children);
            waiting.extend(children.into_iter().rev().map(|it| (it, depth)));
        }
        columns
    }

    /// AND, OR or NOT with its arguments.
    pub fn as_boolean(self) -> Option<(BooleanOperator, Vec<Node<'a>>)> {
        if self.tag() != NodeTag::T_BoolExpr {
            return None;
        }
        // SAFETY: the tag was checked; the arguments are expressions.
        let (operator, arguments) = unsafe {
            let expression = self.cast::<pg_sys::BoolExpr>();
            (expression.boolop, nodes(expression.args))
        };
        let operator = match operator {
            pg_sys::BoolExprType::AND_EXPR => BooleanOperator::And,
            pg_sys::BoolExprType::OR_EXPR => BooleanOperator::Or,
            _ => BooleanOperator::Not,
        };
        Some((operator, arguments))
    }

    /// This sub-query in an expression.
    pub fn as_sub_link(self) -> Option<SubLink<'a>> {
        if self.tag() != NodeTag::T_SubLink {
            return None;
        }
        // SAFETY: the tag was checked; an analyzed sub-link has a query.
        unsafe {
            let link = self.cast::<pg_sys::SubLink>();
            let kind = match link.subLinkType {
                pg_sys::SubLinkType::EXISTS_SUBLINK => SubLinkKind::Exists,
                pg_sys::SubLinkType::ANY_SUBLINK => SubLinkKind::Any,
                pg_sys::SubLinkType::ALL_SUBLINK => SubLinkKind::All,
                pg_sys::SubLinkType::EXPR_SUBLINK => SubLinkKind::Scalar,
                pg_sys::SubLinkType::ARRAY_SUBLINK => SubLinkKind::Array,
                pg_sys::SubLinkType::ROWCOMPARE_SUBLINK => SubLinkKind::Row,
                _ => SubLinkKind::Other,
            };
            Some(SubLink {
                kind,
                words: sub_link_words(link.subLinkType),
                query: Query(Node::from_ptr(link.subselect)?),
                test: Node::from_ptr(link.testexpr),
            })
        }
    }

    /// The number, from 1, of the output column of a sub-query for which this node stands in its
    /// test.
    pub fn as_sub_link_output(self) -> Option<i32> {
        if self.tag() != NodeTag::T_Param {
            return None;
        }
        // SAFETY: the tag was checked.
        let param = unsafe { self.cast::<pg_sys::Param>() };
        (param.paramkind == pg_sys::ParamKind::PARAM_SUBLINK).then_some(param.paramid)
    }

    /// A copy in which each column, aggregate and window function for which `f` gives a position is the plan's
    /// input at that position, with the type that it had. `f` gets the node and, for a column, what it
    /// refers to as seen from the top of the expression. Columns of sub-queries' own are left alone,
    /// and sub-queries get aliases that are none of the plan's, which stand in place of the inputs later.
    pub fn with_inputs(
        self,
        f: &mut dyn FnMut(Node<'a>, Option<ColumnRef>) -> Option<usize>,
    ) -> Node<'a> {
        // SAFETY: the copy is ours to change, and no two places in it share a node.
        let copy = unsafe { Self::from_ptr(pg_sys::copyObjectImpl(self.as_ptr())) };
        let copy = copy.unwrap_or(self);
        let mut aliases = 0;
        let mut waiting = vec![(copy, 0)];
        while let Some((node, depth)) = waiting.pop() {
            let position = match node.kind() {
                Kind::Column(column) => match column.levels_up.checked_sub(depth) {
                    Some(levels_up) => f(node, Some(ColumnRef { levels_up, ..column })),
                    None => None,
                },
                Kind::Aggregate(_) | Kind::Window(_) if depth == 0 => f(node, None),
                _ => None,
            };
            if let Kind::Query(query) = node.kind() {
                // SAFETY: the copy is ours to change.
                unsafe { item::rename(query, &mut aliases) };
            }
            if let Some(position) = position {
                let (ty, typmod, collation) = (node.type_oid(), node.typmod(), node.collation());
                // SAFETY: a Param is smaller than a Var, an Aggref, a WindowFunc and a
                // JsonConstructorExpr, each of which is an allocation of its own.
                unsafe { fill_input(node.as_ptr(), position, (ty, typmod, collation)) };
                continue;
            }
            let depth = depth + u32::from(node.tag() == NodeTag::T_Query);
            let mut children = Vec::new();
            node.push_children(&mut children);
            waiting.extend(children.into_iter().rev().map(|it| (it, depth)));
        }
        copy
    }

    /// A copy in which each node for which `f` gives another is replaced by it, from the top. It
    /// needs much stack; see also [`Node::with_inputs`].
    pub fn replace(self, f: &mut dyn FnMut(Node<'a>) -> Option<Node<'a>>) -> Node<'a> {
        let mut f = f;
        let context: *mut &mut dyn FnMut(Node<'a>) -> Option<Node<'a>> = &mut f;
        // SAFETY: the callback gets back exactly this context, and only during this call. The
        // copy is allocated in the current context, which is the arena or one that lives longer.
        let copy = unsafe { Node::from_ptr(replace_callback(self.as_ptr(), context.cast())) };
        copy.unwrap_or(self)
    }

    /// The arguments of a conjunction, taken apart; any other condition is its own conjunct.
    pub fn conjuncts(self) -> Vec<Node<'a>> {
        match self.kind() {
            Kind::Boolean { conjunction: true, arguments } => {
                arguments.into_iter().flat_map(Node::conjuncts).collect()
            }
            _ => vec![self],
        }
    }

    /// Entries of the range table of which no row of NULLs satisfies the condition.
    pub fn entries_not_null(self) -> BTreeSet<usize> {
        let mut entries = BTreeSet::new();
        // SAFETY: the function only reads the tree, and gives a set in the current context.
        unsafe {
            let found = pg_sys::find_nonnullable_rels(self.pointer.as_ptr());
            let mut member = pg_sys::bms_next_member(found, -1);
            while let Ok(entry) = usize::try_from(member) {
                entries.insert(entry);
                member = pg_sys::bms_next_member(found, member);
            }
        }
        entries
    }

    /// The functions that the node itself calls.
    pub fn functions(self) -> Vec<Oid> {
        let mut functions = Vec::new();
        // SAFETY: each cast follows the tag.
        let aggregate = unsafe {
            match self.tag() {
                NodeTag::T_Aggref => Some(self.cast::<pg_sys::Aggref>().aggfnoid),
                NodeTag::T_WindowFunc => {
                    let call = self.cast::<pg_sys::WindowFunc>();
                    call.winagg.then_some(call.winfnoid)
                }
                _ => None,
            }
        };
        functions.extend(aggregate.into_iter().flat_map(support_functions));
        // SAFETY: the callback gets back exactly this vector, and only during this call.
        unsafe {
            pg_sys::check_functions_in_node(
                self.as_ptr(),
                Some(function_callback),
                (&raw mut functions).cast(),
            );
        }
        functions
    }

    /// The arguments of a call that leaves some to the function's defaults: all that it gets.
    pub fn expanded_arguments(self) -> Vec<Node<'a>> {
        if self.tag() != NodeTag::T_FuncExpr {
            return Vec::new();
        }
        // SAFETY: the tag was checked; the tuple is that of the function that is called, and the arguments
        // are copies in the current context.
        unsafe {
            let call = self.cast::<pg_sys::FuncExpr>();
            let cache = pg_sys::SysCacheIdentifier::PROCOID as i32;
            let tuple = pg_sys::SearchSysCache1(cache, call.funcid.into());
            if tuple.is_null() {
                return Vec::new();
            }
            let function = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_proc>();
            let given = cells(call.args).count();
            let arguments = if given < usize::try_from((*function).pronargs).unwrap_or(0) {
                let result = call.funcresulttype;
                nodes(pg_sys::expand_function_arguments(call.args, false, result, tuple))
            } else {
                Vec::new()
            };
            pg_sys::ReleaseSysCache(tuple);
            arguments
        }
    }

    /// The positions of the plan's columns in the expression.
    pub fn input_positions(self) -> Vec<usize> {
        let mut positions = Vec::new();
        self.visit(&mut |node| {
            if node.as_sub_link_output().is_none()
                && let Kind::Input(position) = node.kind()
            {
                positions.push(position);
            }
            Step::Into
        });
        positions
    }

    /// Whether the expression calls a set-returning function.
    pub fn returns_set(self) -> bool {
        // SAFETY: the node is an expression tree.
        unsafe { pg_sys::expression_returns_set(self.as_ptr()) }
    }

    /// Whether the node is `CURRENT_DATE`, `SESSION_USER` and such.
    pub fn is_session_value(self) -> bool {
        self.tag() == NodeTag::T_SQLValueFunction
    }

    /// CURRENT_USER and the like: the owner of the stream table, whoever refreshes it.
    pub fn is_current_user(self) -> bool {
        self.tag() == NodeTag::T_SQLValueFunction
            && matches!(
                // SAFETY: the tag says what it is.
                unsafe { self.cast::<pg_sys::SQLValueFunction>() }.op,
                pg_sys::SQLValueFunctionOp::SVFOP_CURRENT_ROLE
                    | pg_sys::SQLValueFunctionOp::SVFOP_CURRENT_USER
                    | pg_sys::SQLValueFunctionOp::SVFOP_USER
            )
    }

    /// Whether the node reads or writes values by the functions of their types, or as these would.
    /// Some look at settings although they are IMMUTABLE.
    pub fn converts(self) -> bool {
        matches!(
            self.tag(),
            NodeTag::T_CoerceViaIO
                | NodeTag::T_JsonConstructorExpr
                | NodeTag::T_JsonExpr
                | NodeTag::T_XmlExpr
                | NodeTag::T_TableFunc
        )
    }

    /// The types of the values that a call gets, that a row is made of, or that of an output column.
    pub fn argument_types(self) -> Vec<Oid> {
        let has_arguments = matches!(
            self.tag(),
            NodeTag::T_FuncExpr
                | NodeTag::T_OpExpr
                | NodeTag::T_ScalarArrayOpExpr
                | NodeTag::T_Aggref
                | NodeTag::T_WindowFunc
                | NodeTag::T_CoerceViaIO
                | NodeTag::T_JsonConstructorExpr
                | NodeTag::T_JsonExpr
                | NodeTag::T_XmlExpr
                | NodeTag::T_RowExpr
                | NodeTag::T_TargetEntry
        );
        let (mut types, mut waiting) = (Vec::new(), Vec::new());
        if has_arguments {
            self.push_children(&mut waiting);
        }
        while let Some(node) = waiting.pop() {
            match node.tag() {
                NodeTag::T_List | NodeTag::T_TargetEntry => node.push_children(&mut waiting),
                NodeTag::T_SortGroupClause => {}
                _ => types.push(node.type_oid()),
            }
        }
        types
    }

    /// The types of the columns of an item of FROM that says which it makes of a text or a record.
    pub fn made_columns(self) -> Vec<Oid> {
        // SAFETY: each cast follows the tag; the lists hold OIDs.
        unsafe {
            let columns = match self.tag() {
                NodeTag::T_TableFunc => self.cast::<pg_sys::TableFunc>().coltypes,
                NodeTag::T_RangeTblFunction => self.cast::<pg_sys::RangeTblFunction>().funccoltypes,
                _ => ptr::null_mut(),
            };
            cells(columns).map(|it| it.oid_value).collect()
        }
    }

    /// The paths by which the node looks into JSON, where they may use the time zone.
    pub fn json_paths(self) -> Vec<Node<'a>> {
        // SAFETY: each cast follows the tag; a table function of JSON has a plan.
        unsafe {
            match self.tag() {
                NodeTag::T_JsonExpr => {
                    let path = self.cast::<pg_sys::JsonExpr>().path_spec;
                    Node::from_ptr(path).into_iter().collect()
                }
                NodeTag::T_TableFunc => {
                    let mut paths = Vec::new();
                    let mut plans = vec![self.cast::<pg_sys::TableFunc>().plan];
                    while let Some(plan) = plans.pop().and_then(|it| Node::from_ptr(it)) {
                        if plan.tag() == NodeTag::T_JsonTablePathScan {
                            let scan = plan.cast::<pg_sys::JsonTablePathScan>();
                            paths.extend(Node::from_ptr((*scan.path).value.cast::<pg_sys::Node>()));
                            plans.extend((!scan.child.is_null()).then_some(scan.child.cast()));
                        } else if plan.tag() == NodeTag::T_JsonTableSiblingJoin {
                            let join = plan.cast::<pg_sys::JsonTableSiblingJoin>();
                            plans.extend([join.lplan.cast(), join.rplan.cast()]);
                        }
                    }
                    paths
                }
                NodeTag::T_FuncExpr => {
                    let call = self.cast::<pg_sys::FuncExpr>();
                    let name = super::types::builtin_function(call.funcid);
                    let is_path =
                        name.is_some_and(|it| it.starts_with("jsonb_path_") && it.ends_with("_tz"));
                    nodes(call.args).into_iter().filter(|_| is_path).skip(1).take(1).collect()
                }
                _ => Vec::new(),
            }
        }
    }

    /// An output column of a query, or an argument of an aggregate.
    pub fn is_target(self) -> bool {
        self.tag() == NodeTag::T_TargetEntry
    }

    /// Whether the node is a cast by way of a text.
    pub fn is_cast(self) -> bool {
        self.tag() == NodeTag::T_CoerceViaIO
    }

    /// A digest of the tree, the same for equal trees.
    pub fn digest(self) -> u64 {
        // SAFETY: a valid node in, a C string out.
        let text = unsafe { text(pg_sys::nodeToString(self.as_ptr())) };
        xxhash_rust::xxh3::xxh3_64(text.unwrap_or_default().as_bytes())
    }

    /// A WITH item that PostgreSQL does not plan, since nothing refers to it.
    pub fn is_idle_common_table(self) -> bool {
        self.tag() == NodeTag::T_CommonTableExpr
            // SAFETY: the tag says what it is.
            && unsafe { self.cast::<pg_sys::CommonTableExpr>() }.cterefcount == 0
    }

    /// Whether the node draws from a sequence.
    pub fn is_next_value(self) -> bool {
        self.tag() == NodeTag::T_NextValueExpr
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn child_callback(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    // SAFETY: `context` comes from `push_children`; PostgreSQL hands us nodes of the tree.
    unsafe {
        let children = &mut *context.cast::<Vec<Node<'_>>>();
        children.extend(Node::from_ptr(node));
    }
    false
}

#[pg_guard]
unsafe extern "C-unwind" fn replace_callback(
    node: *mut pg_sys::Node,
    context: *mut c_void,
) -> *mut pg_sys::Node {
    // SAFETY: `context` comes from `replace`; PostgreSQL hands us nodes of the tree.
    unsafe {
        let Some(node) = Node::from_ptr(node) else { return ptr::null_mut() };
        let f = &mut *context.cast::<&mut dyn FnMut(Node<'_>) -> Option<Node<'_>>>();
        match f(node) {
            Some(other) => other.as_ptr(),
            None => {
                pg_sys::expression_tree_mutator_impl(node.as_ptr(), Some(replace_callback), context)
            }
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn function_callback(function: pg_sys::Oid, context: *mut c_void) -> bool {
    // SAFETY: `context` comes from `functions`.
    unsafe { (*context.cast::<Vec<Oid>>()).push(function) };
    false
}

fn sub_link_words(kind: pg_sys::SubLinkType::Type) -> &'static str {
    match kind {
        pg_sys::SubLinkType::EXISTS_SUBLINK => "EXISTS sub-query",
        pg_sys::SubLinkType::ALL_SUBLINK => "ALL sub-query",
        pg_sys::SubLinkType::ANY_SUBLINK => "IN or ANY sub-query",
        pg_sys::SubLinkType::ARRAY_SUBLINK => "ARRAY sub-query",
        _ => "scalar sub-query",
    }
}

/// A column of the range table with the type of `like`.
pub fn column<'a>(reference: ColumnRef, like: Node<'_>) -> Node<'a> {
    // SAFETY: the variable is allocated here.
    unsafe {
        let var = pg_sys::makeVar(
            reference.entry as i32,
            reference.attribute,
            like.type_oid(),
            like.typmod(),
            like.collation(),
            reference.levels_up,
        );
        Node { pointer: NonNull::new_unchecked(var.cast()), arena: PhantomData }
    }
}

/// AND, OR or NOT of these.
pub fn boolean<'a>(operator: BooleanOperator, arguments: &[Node<'a>]) -> Node<'a> {
    let operator = match operator {
        BooleanOperator::And => pg_sys::BoolExprType::AND_EXPR,
        BooleanOperator::Or => pg_sys::BoolExprType::OR_EXPR,
        BooleanOperator::Not => pg_sys::BoolExprType::NOT_EXPR,
    };
    // SAFETY: a list of expressions, allocated here.
    unsafe {
        let pointer = pg_sys::makeBoolExpr(operator, list(arguments), -1);
        Node { pointer: NonNull::new_unchecked(pointer.cast()), arena: PhantomData }
    }
}

/// A call of a function.
pub fn call<'a>(function: Oid, result: Oid, arguments: &[Node<'_>]) -> Node<'a> {
    // SAFETY: a list of expressions, allocated here, which the call keeps.
    unsafe {
        let call = pg_sys::makeFuncExpr(
            function,
            result,
            list(arguments),
            pg_sys::InvalidOid,
            pg_sys::InvalidOid,
            pg_sys::CoercionForm::COERCE_EXPLICIT_CALL,
        );
        Node { pointer: NonNull::new_unchecked(call.cast()), arena: PhantomData }
    }
}

/// The value where the condition is true, and NULL of its type elsewhere. It must not be of a domain, which
/// can forbid NULL.
pub fn only_if<'a>(condition: Node<'_>, value: Node<'_>) -> Node<'a> {
    // SAFETY: both nodes are allocated here, of the right size, and filled in.
    unsafe {
        let when = pg_sys::palloc0(size_of::<pg_sys::CaseWhen>()).cast::<pg_sys::CaseWhen>();
        (*when).xpr.type_ = NodeTag::T_CaseWhen;
        (*when).expr = condition.as_ptr();
        (*when).result = value.as_ptr();
        (*when).location = -1;
        // Of no collation, so that the value's own is that of the whole.
        let null = pg_sys::makeNullConst(value.type_oid(), value.typmod(), pg_sys::InvalidOid);
        let case = pg_sys::palloc0(size_of::<pg_sys::CaseExpr>()).cast::<pg_sys::CaseExpr>();
        (*case).xpr.type_ = NodeTag::T_CaseExpr;
        (*case).casetype = value.type_oid();
        (*case).casecollid = value.collation();
        (*case).args = pg_sys::lappend(ptr::null_mut(), when.cast());
        (*case).defresult = null.cast();
        (*case).location = -1;
        Node { pointer: NonNull::new_unchecked(case.cast()), arena: PhantomData }
    }
}

fn list(items: &[Node<'_>]) -> *mut pg_sys::List {
    // SAFETY: the list is made here.
    let append = |list, it: &Node<'_>| unsafe { pg_sys::lappend(list, it.as_ptr::<c_void>()) };
    items.iter().fold(ptr::null_mut(), append)
}

/// The column of a plan's input at `position`, as an expression of the given type.
pub fn input<'a>(position: usize, ty: Oid, typmod: i32, collation: Oid) -> Node<'a> {
    // SAFETY: the allocation is of the right size.
    unsafe {
        let param = pg_sys::palloc0(size_of::<pg_sys::Param>()).cast();
        fill_input(param, position, (ty, typmod, collation));
        Node { pointer: NonNull::new_unchecked(param.cast()), arena: PhantomData }
    }
}

const _: () = {
    assert!(size_of::<pg_sys::Param>() <= size_of::<pg_sys::Var>());
    assert!(size_of::<pg_sys::Param>() <= size_of::<pg_sys::Aggref>());
    assert!(size_of::<pg_sys::Param>() <= size_of::<pg_sys::WindowFunc>());
    assert!(size_of::<pg_sys::Param>() <= size_of::<pg_sys::JsonConstructorExpr>());
};

/// # Safety
/// At the pointer there must be room for a Param.
pub(super) unsafe fn fill_input(
    pointer: *mut pg_sys::Param,
    position: usize,
    (ty, typmod, collation): (Oid, i32, Oid),
) {
    // SAFETY: by the caller's promise.
    unsafe {
        (*pointer).xpr.type_ = NodeTag::T_Param;
        (*pointer).paramkind = pg_sys::ParamKind::PARAM_EXTERN;
        (*pointer).paramid = position as i32 + 1;
        (*pointer).paramtype = ty;
        (*pointer).paramtypmod = typmod;
        (*pointer).paramcollid = collation;
        (*pointer).location = -1;
    }
}

/// `expression` as a value of `ty`, by PostgreSQL's rules for the branches of a set operation.
pub fn coerced<'a>(expression: Node<'a>, ty: Oid, typmod: i32, collation: Oid) -> Node<'a> {
    // SAFETY: the expression is a valid tree of its own type; the parser made sure that it can be
    // coerced.
    unsafe {
        let mut pointer: *mut pg_sys::Node = expression.as_ptr();
        if expression.type_oid() != ty {
            pointer = pg_sys::coerce_type(
                ptr::null_mut(),
                pointer,
                expression.type_oid(),
                ty,
                typmod,
                pg_sys::CoercionContext::COERCION_IMPLICIT,
                pg_sys::CoercionForm::COERCE_IMPLICIT_CAST,
                -1,
            );
        }
        let node = Node::from_ptr(pointer).unwrap_or(expression);
        if node.collation() == collation {
            return node;
        }
        let relabeled = pg_sys::applyRelabelType(
            pointer,
            ty,
            node.typmod(),
            collation,
            pg_sys::CoercionForm::COERCE_IMPLICIT_CAST,
            -1,
            false,
        );
        Node::from_ptr(relabeled).unwrap_or(node)
    }
}

/// An aggregate call. JSON_ARRAYAGG and JSON_OBJECTAGG are one with a node around it.
#[derive(Clone, Copy)]
pub struct Aggregate<'a> {
    whole: Node<'a>,
    call: Node<'a>,
}

impl<'a> Aggregate<'a> {
    fn get(self) -> &'a pg_sys::Aggref {
        // SAFETY: `call` is a node with this tag.
        unsafe { self.call.cast() }
    }

    /// The call as an expression.
    pub fn node(self) -> Node<'a> {
        self.whole
    }

    /// `pg_proc.oid`.
    pub fn function(self) -> Oid {
        self.get().aggfnoid
    }

    /// Whose aggregate it is: 0 of the query itself, 1 of the one around it.
    pub fn levels_up(self) -> u32 {
        self.get().agglevelsup
    }

    /// Whether it is `count(*)`.
    pub fn is_star(self) -> bool {
        self.get().aggstar
    }

    /// DISTINCT inside.
    pub fn is_distinct(self) -> bool {
        !self.get().aggdistinct.is_null()
    }

    /// ORDER BY inside, or WITHIN GROUP.
    pub fn is_ordered(self) -> bool {
        !self.get().aggorder.is_null()
    }

    /// What ORDER BY or DISTINCT inside of it sort the rows by.
    pub fn order(self) -> Vec<Node<'a>> {
        // SAFETY: the lists hold sort-group clauses, and target entries with an expression.
        unsafe {
            let items = [self.get().aggorder, self.get().aggdistinct];
            let items: Vec<SortGroup> = items.into_iter().flat_map(|it| sort_groups(it)).collect();
            let is_meant = |it: &*mut pg_sys::TargetEntry| {
                items.iter().any(|item| item.reference == (**it).ressortgroupref)
            };
            let entries = pointers::<pg_sys::TargetEntry>(self.get().args).filter(is_meant);
            entries.filter_map(|it| Node::from_ptr((*it).expr)).collect()
        }
    }

    /// An ordinary aggregate, neither ordered-set nor hypothetical-set.
    pub fn is_normal(self) -> bool {
        self.get().aggkind as u8 == b'n'
    }

    /// The aggregated arguments.
    pub fn arguments(self) -> Vec<Node<'a>> {
        // SAFETY: the list holds target entries with an expression.
        unsafe {
            pointers::<pg_sys::TargetEntry>(self.get().args)
                .filter(|it| !(**it).resjunk)
                .filter_map(|it| Node::from_ptr((*it).expr))
                .collect()
        }
    }

    /// The direct arguments of an ordered-set aggregate.
    pub fn direct_arguments(self) -> Vec<Node<'a>> {
        // SAFETY: the list holds expressions.
        unsafe { nodes(self.get().aggdirectargs) }
    }

    /// The FILTER condition.
    pub fn filter(self) -> Option<Node<'a>> {
        // SAFETY: an expression or null.
        unsafe { Node::from_ptr(self.get().aggfilter) }
    }
}

/// The functions that an aggregate is made of.
fn support_functions(aggregate: Oid) -> Vec<Oid> {
    // Attribute numbers of `pg_aggregate`: the functions of state and result, and those for windows.
    const FUNCTIONS: [i16; 5] = [4, 5, 9, 10, 11];
    let cache = pg_sys::SysCacheIdentifier::AGGFNOID as i32;
    // SAFETY: these attributes are OIDs by value and never NULL.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache, aggregate.into());
        if tuple.is_null() {
            return Vec::new();
        }
        let functions = FUNCTIONS.map(|attribute| {
            Oid::from(pg_sys::SysCacheGetAttrNotNull(cache, tuple, attribute).value() as u32)
        });
        pg_sys::ReleaseSysCache(tuple);
        functions.into_iter().filter(|it| *it != pg_sys::InvalidOid).collect()
    }
}

/// AND, OR, NOT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BooleanOperator {
    And,
    Or,
    Not,
}

/// A sub-query in an expression.
#[derive(Clone, Copy)]
pub struct SubLink<'a> {
    pub kind: SubLinkKind,
    /// What the manual calls it.
    pub words: &'static str,
    pub query: Query<'a>,
    /// For ANY, ALL and rows the comparison, with [`Node::as_sub_link_output`] for the query's columns.
    pub test: Option<Node<'a>>,
}

/// Kinds of sub-query in an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubLinkKind {
    Exists,
    Any,
    All,
    Scalar,
    Array,
    /// A row that is compared with the only one of the sub-query.
    Row,
    Other,
}

/// An analyzed SELECT.
#[derive(Clone, Copy)]
pub struct Query<'a>(pub(super) Node<'a>);

/// An entry of the select list.
#[derive(Clone)]
pub struct Target<'a> {
    pub expression: Node<'a>,
    pub name: String,
    /// Only there for ORDER BY, GROUP BY or DISTINCT ON.
    pub junk: bool,
    /// What GROUP BY and DISTINCT refer to it by; 0 if they do not.
    pub reference: u32,
}

/// An item of GROUP BY, DISTINCT or ORDER BY.
#[derive(Clone, Copy)]
pub struct SortGroup {
    /// See [`Target::reference`].
    pub reference: u32,
    /// The equality operator.
    pub equality: Oid,
    /// The operator that it is sorted by, and whether NULLs come first.
    pub order: (Oid, bool),
}

/// An item of GROUP BY in a query with grouping sets. Numbers are those of [`SortGroup::reference`].
pub enum GroupingSet {
    /// Columns that are grouped by together; none of them is `()`.
    Simple(Vec<u32>),
    Rollup(Vec<Vec<u32>>),
    Cube(Vec<Vec<u32>>),
    /// GROUPING SETS.
    Sets(Vec<GroupingSet>),
}

/// The tree of FROM.
pub enum From<'a> {
    /// An entry of the range table.
    Entry(usize),
    /// The items joined, and the condition.
    Items { items: Vec<Node<'a>>, condition: Option<Node<'a>> },
    /// A JOIN.
    Join { kind: Join, left: Node<'a>, right: Node<'a>, condition: Option<Node<'a>> },
}

/// Kinds of JOIN.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Join {
    Inner,
    Left,
    Right,
    Full,
}

/// A tree of UNION, INTERSECT and EXCEPT.
pub enum SetTree<'a> {
    /// A sub-query of the range table.
    Entry(usize),
    /// An operation on two trees.
    Operation(SetOperation<'a>),
}

/// A set operation.
pub struct SetOperation<'a> {
    pub kind: SetKind,
    pub all: bool,
    pub left: Node<'a>,
    pub right: Node<'a>,
    /// Type, modifier and collation of each column.
    pub columns: Vec<(Oid, i32, Oid)>,
    /// The equality operators of the columns, unless it is UNION ALL.
    pub equalities: Vec<Oid>,
}

/// Kinds of set operation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    Union,
    Intersect,
    Except,
}

/// A WITH item.
pub struct CommonTable<'a> {
    pub query: Query<'a>,
    pub recursive: bool,
    /// SEARCH, which adds a column that only tells an order.
    pub has_search: bool,
    /// CYCLE, which adds columns by which the recursion ends.
    pub has_cycle: bool,
    pub references: i32,
}

impl<'a> Query<'a> {
    pub(super) fn get(self) -> &'a pg_sys::Query {
        // SAFETY: made only from nodes with this tag.
        unsafe { self.0.cast() }
    }

    /// The query as a node.
    pub fn node(self) -> Node<'a> {
        self.0
    }

    /// Whether it is a SELECT that writes nothing.
    pub fn is_plain_select(self) -> bool {
        let query = self.get();
        query.commandType == pg_sys::CmdType::CMD_SELECT
            && query.utilityStmt.is_null()
            && !query.hasModifyingCTE
    }

    pub fn has_modifying_cte(self) -> bool {
        self.get().hasModifyingCTE
    }

    pub fn has_aggregation(self) -> bool {
        let query = self.get();
        query.hasAggs
            || !query.groupClause.is_null()
            || !query.groupingSets.is_null()
            || !query.havingQual.is_null()
    }

    pub fn has_grouping_sets(self) -> bool {
        !self.get().groupingSets.is_null()
    }

    pub fn has_windows(self) -> bool {
        self.get().hasWindowFuncs
    }

    pub fn has_set_returning_targets(self) -> bool {
        self.get().hasTargetSRFs
    }

    pub fn has_distinct_on(self) -> bool {
        self.get().hasDistinctOn
    }

    pub fn has_row_locks(self) -> bool {
        !self.get().rowMarks.is_null()
    }

    /// The LIMIT expression.
    pub fn limit(self) -> Option<Node<'a>> {
        // SAFETY: an expression or null.
        unsafe { Node::from_ptr(self.get().limitCount) }
    }

    /// The OFFSET expression.
    pub fn offset(self) -> Option<Node<'a>> {
        // SAFETY: an expression or null.
        unsafe { Node::from_ptr(self.get().limitOffset) }
    }

    pub fn having(self) -> Option<Node<'a>> {
        // SAFETY: an expression or null.
        unsafe { Node::from_ptr(self.get().havingQual) }
    }

    /// The select list, with the junk.
    pub fn targets(self) -> Vec<Target<'a>> {
        // SAFETY: the list holds target entries with an expression.
        unsafe {
            pointers::<pg_sys::TargetEntry>(self.get().targetList)
                .filter_map(|it| {
                    Some(Target {
                        expression: Node::from_ptr((*it).expr)?,
                        name: text((*it).resname).unwrap_or_default(),
                        junk: (*it).resjunk,
                        reference: (*it).ressortgroupref,
                    })
                })
                .collect()
        }
    }

    pub fn group_by(self) -> Vec<SortGroup> {
        // SAFETY: the list holds sort-group clauses.
        unsafe { sort_groups(self.get().groupClause) }
    }

    pub fn grouping_sets(self) -> Vec<GroupingSet> {
        // SAFETY: the list holds grouping sets.
        unsafe { grouping_sets(self.get().groupingSets) }
    }

    /// GROUP BY DISTINCT.
    pub fn groups_by_distinct_sets(self) -> bool {
        self.get().groupDistinct
    }

    /// DISTINCT; empty without it.
    pub fn distinct(self) -> Vec<SortGroup> {
        // SAFETY: the list holds sort-group clauses.
        unsafe { sort_groups(self.get().distinctClause) }
    }

    /// The tree of FROM and WHERE.
    pub fn from(self) -> Option<Node<'a>> {
        // SAFETY: a FromExpr or null.
        unsafe { Node::from_ptr(self.get().jointree) }
    }

    pub fn set_operations(self) -> Option<Node<'a>> {
        // SAFETY: a node or null.
        unsafe { Node::from_ptr(self.get().setOperations) }
    }

    /// The range table.
    pub fn entries(self) -> Vec<Entry<'a>> {
        // SAFETY: the list holds range table entries that live as long as the query.
        unsafe {
            pointers::<pg_sys::RangeTblEntry>(self.get().rtable).map(|it| Entry(&*it)).collect()
        }
    }

    /// The entry at a position from 1.
    pub fn entry(self, position: usize) -> Option<Entry<'a>> {
        self.entries().into_iter().nth(position.checked_sub(1)?)
    }

    pub fn common_table(self, name: &str) -> Option<CommonTable<'a>> {
        // SAFETY: the list holds common table expressions, whose query is analyzed.
        unsafe {
            pointers::<pg_sys::CommonTableExpr>(self.get().cteList)
                .find(|it| text((**it).ctename).as_deref() == Some(name))
                .and_then(|it| {
                    Some(CommonTable {
                        query: Query(Node::from_ptr((*it).ctequery)?),
                        recursive: (*it).cterecursive,
                        has_search: !(*it).search_clause.is_null(),
                        has_cycle: !(*it).cycle_clause.is_null(),
                        references: (*it).cterefcount,
                    })
                })
        }
    }

    /// What is read with the rights of whom, as the rewriter left it.
    pub fn permissions(self) -> Vec<Permission> {
        // SAFETY: the list holds permission infos.
        unsafe {
            pointers::<pg_sys::RTEPermissionInfo>(self.get().rteperminfos)
                .map(|it| Permission::of(&*it))
                .collect()
        }
    }

    /// What is read of an entry, with the rights of whom: of a table, or of a view that was put in its place.
    pub fn permission(self, entry: Entry<'_>) -> Option<Permission> {
        let index = usize::try_from(entry.0.perminfoindex).ok()?.checked_sub(1)?;
        self.permissions().into_iter().nth(index)
    }

    pub fn has_common_tables(self) -> bool {
        !self.get().cteList.is_null()
    }

    pub fn has_sub_links(self) -> bool {
        self.get().hasSubLinks
    }

    /// For each relation that this query itself names, the columns that it reads; 0 stands for
    /// the whole row.
    pub fn columns_read(self) -> Vec<(Oid, Vec<i16>)> {
        // SAFETY: the list holds permission infos; the bitmap is null or valid.
        unsafe {
            pointers::<pg_sys::RTEPermissionInfo>(self.get().rteperminfos)
                .map(|it| {
                    let mut columns = Vec::new();
                    let mut member = -1;
                    loop {
                        member = pg_sys::bms_next_member((*it).selectedCols, member);
                        if member < 0 {
                            break;
                        }
                        let column = member + pg_sys::FirstLowInvalidHeapAttributeNumber;
                        columns.push(column as i16);
                    }
                    ((*it).relid, columns)
                })
                .collect()
        }
    }
}

impl<'a> Node<'a> {
    /// This node of FROM.
    pub fn as_from(self) -> Option<From<'a>> {
        // SAFETY: each cast follows the tag.
        unsafe {
            match self.tag() {
                NodeTag::T_RangeTblRef => {
                    Some(From::Entry(self.cast::<pg_sys::RangeTblRef>().rtindex as usize))
                }
                NodeTag::T_FromExpr => {
                    let from = self.cast::<pg_sys::FromExpr>();
                    let condition = Node::from_ptr(from.quals);
                    Some(From::Items { items: nodes(from.fromlist), condition })
                }
                NodeTag::T_JoinExpr => {
                    let join = self.cast::<pg_sys::JoinExpr>();
                    let kind = match join.jointype {
                        pg_sys::JoinType::JOIN_INNER => Join::Inner,
                        pg_sys::JoinType::JOIN_LEFT => Join::Left,
                        pg_sys::JoinType::JOIN_RIGHT => Join::Right,
                        pg_sys::JoinType::JOIN_FULL => Join::Full,
                        _ => return None,
                    };
                    Some(From::Join {
                        kind,
                        left: Node::from_ptr(join.larg)?,
                        right: Node::from_ptr(join.rarg)?,
                        condition: Node::from_ptr(join.quals),
                    })
                }
                _ => None,
            }
        }
    }

    /// This node of a set operation.
    pub fn as_set_tree(self) -> Option<SetTree<'a>> {
        // SAFETY: each cast follows the tag; the column lists hold integers and OIDs.
        unsafe {
            match self.tag() {
                NodeTag::T_RangeTblRef => {
                    Some(SetTree::Entry(self.cast::<pg_sys::RangeTblRef>().rtindex as usize))
                }
                NodeTag::T_SetOperationStmt => {
                    let statement = self.cast::<pg_sys::SetOperationStmt>();
                    let kind = match statement.op {
                        pg_sys::SetOperation::SETOP_UNION => SetKind::Union,
                        pg_sys::SetOperation::SETOP_INTERSECT => SetKind::Intersect,
                        _ => SetKind::Except,
                    };
                    Some(SetTree::Operation(SetOperation {
                        kind,
                        all: statement.all,
                        left: Node::from_ptr(statement.larg)?,
                        right: Node::from_ptr(statement.rarg)?,
                        columns: column_types(
                            statement.colTypes,
                            statement.colTypmods,
                            statement.colCollations,
                        ),
                        equalities: sort_groups(statement.groupClauses)
                            .iter()
                            .map(|it| it.equality)
                            .collect(),
                    }))
                }
                _ => None,
            }
        }
    }
}

/// An entry of a range table.
#[derive(Clone, Copy)]
pub struct Entry<'a>(&'a pg_sys::RangeTblEntry);

/// What an entry stands for.
pub enum EntryKind<'a> {
    Relation { oid: Oid, kind: char, children: bool },
    SubQuery(Query<'a>),
    Join,
    Function,
    TableFunction,
    Values { rows: Vec<Vec<Node<'a>>>, columns: Vec<(Oid, i32, Oid)> },
    CommonTable { name: String, levels_up: u32, recursive: bool },
    Group(Vec<Node<'a>>),
    Other,
}

impl<'a> Entry<'a> {
    pub fn kind(self) -> EntryKind<'a> {
        let entry = self.0;
        // SAFETY: which fields are valid follows the kind.
        unsafe {
            match entry.rtekind {
                pg_sys::RTEKind::RTE_RELATION => EntryKind::Relation {
                    oid: entry.relid,
                    kind: entry.relkind as u8 as char,
                    children: entry.inh,
                },
                pg_sys::RTEKind::RTE_SUBQUERY => match Node::from_ptr(entry.subquery) {
                    Some(query) => EntryKind::SubQuery(Query(query)),
                    None => EntryKind::Other,
                },
                pg_sys::RTEKind::RTE_JOIN => EntryKind::Join,
                pg_sys::RTEKind::RTE_FUNCTION => EntryKind::Function,
                pg_sys::RTEKind::RTE_TABLEFUNC => EntryKind::TableFunction,
                pg_sys::RTEKind::RTE_VALUES => EntryKind::Values {
                    rows: pointers::<pg_sys::List>(entry.values_lists)
                        .map(|it| nodes(it))
                        .collect(),
                    columns: column_types(entry.coltypes, entry.coltypmods, entry.colcollations),
                },
                pg_sys::RTEKind::RTE_CTE => EntryKind::CommonTable {
                    name: text(entry.ctename).unwrap_or_default(),
                    levels_up: entry.ctelevelsup,
                    recursive: entry.self_reference,
                },
                pg_sys::RTEKind::RTE_GROUP => EntryKind::Group(nodes(entry.groupexprs)),
                _ => EntryKind::Other,
            }
        }
    }

    /// The view that a sub-query was, if it was one.
    pub fn inlined_view(self) -> Option<Oid> {
        let entry = self.0;
        (entry.rtekind == pg_sys::RTEKind::RTE_SUBQUERY && entry.relid != pg_sys::InvalidOid)
            .then_some(entry.relid)
    }

    /// Whether the query gives it a name.
    pub fn has_own_name(self) -> bool {
        !self.0.alias.is_null()
    }

    /// TABLESAMPLE.
    pub fn is_sampled(self) -> bool {
        !self.0.tablesample.is_null()
    }

    /// The conditions that row-level security puts on it.
    pub fn policy(self) -> Option<Node<'a>> {
        // SAFETY: a list of expressions of a rewritten query.
        super::query::all_of(&unsafe { nodes(self.0.securityQuals) })
    }

    /// Whether it was a view that promises to show nothing of the rows that it leaves out.
    pub fn is_barrier(self) -> bool {
        self.0.security_barrier
    }

    /// The columns of a join, as expressions over what is joined; none for what is no join.
    pub fn joined(self) -> Vec<Node<'a>> {
        // SAFETY: a list of expressions, or null.
        unsafe { nodes(self.0.joinaliasvars) }
    }

    /// The name of its column `attribute`.
    pub fn column_name(self, attribute: i16) -> Option<String> {
        let index = usize::try_from(attribute - 1).ok()?;
        self.column_names().into_iter().nth(index)
    }

    /// The names of its columns.
    pub fn column_names(self) -> Vec<String> {
        // SAFETY: `eref` is null or a valid alias, whose names are a list of strings.
        unsafe {
            let names = self.0.eref.as_ref().map_or(std::ptr::null_mut(), |it| it.colnames);
            pointers::<pg_sys::String>(names)
                .map(|it| text((*it).sval).unwrap_or_default())
                .collect()
        }
    }

    /// The name it goes by in the query.
    pub fn name(self) -> String {
        // SAFETY: `eref` is null or a valid alias.
        unsafe { self.0.eref.as_ref().and_then(|it| text(it.aliasname)).unwrap_or_default() }
    }
}

/// # Safety
/// The list, if not null, must be a list of pointers to `T`.
pub(super) unsafe fn pointers<'a, T: 'a>(
    list: *mut pg_sys::List,
) -> impl Iterator<Item = *mut T> + 'a {
    // SAFETY: by the caller's promise.
    unsafe { cells(list) }.map(|cell| {
        // SAFETY: as above.
        unsafe { cell.ptr_value }.cast()
    })
}

/// # Safety
/// The list, if not null, must be valid for `'a`.
unsafe fn cells<'a>(list: *mut pg_sys::List) -> impl Iterator<Item = pg_sys::ListCell> + 'a {
    let length = if list.is_null() {
        0
    } else {
        // SAFETY: by the caller's promise.
        unsafe { (*list).length as usize }
    };
    // SAFETY: as above.
    (0..length).map(move |index| unsafe { *(*list).elements.add(index) })
}

/// # Safety
/// The list, if not null, must be a list of nodes that live for `'a`.
unsafe fn nodes<'a>(list: *mut pg_sys::List) -> Vec<Node<'a>> {
    // SAFETY: by the caller's promise.
    unsafe { pointers::<pg_sys::Node>(list).filter_map(|it| Node::from_ptr(it)).collect() }
}

/// # Safety
/// The list, if not null, must be a list of sort-group clauses.
pub(super) unsafe fn sort_groups(list: *mut pg_sys::List) -> Vec<SortGroup> {
    // SAFETY: by the caller's promise.
    unsafe {
        pointers::<pg_sys::SortGroupClause>(list)
            .map(|it| SortGroup {
                reference: (*it).tleSortGroupRef,
                equality: (*it).eqop,
                order: ((*it).sortop, (*it).nulls_first),
            })
            .collect()
    }
}

/// # Safety
/// The list, if not null, must be a list of grouping sets.
unsafe fn grouping_sets(list: *mut pg_sys::List) -> Vec<GroupingSet> {
    // SAFETY: the content of a set follows its kind; that of ROLLUP and CUBE are simple sets.
    unsafe {
        let simple = |list| {
            pointers::<pg_sys::GroupingSet>(list).map(|it| references((*it).content)).collect()
        };
        let set = |set: *mut pg_sys::GroupingSet| match (*set).kind {
            pg_sys::GroupingSetKind::GROUPING_SET_ROLLUP => {
                GroupingSet::Rollup(simple((*set).content))
            }
            pg_sys::GroupingSetKind::GROUPING_SET_CUBE => GroupingSet::Cube(simple((*set).content)),
            pg_sys::GroupingSetKind::GROUPING_SET_SETS => {
                GroupingSet::Sets(grouping_sets((*set).content))
            }
            _ => GroupingSet::Simple(references((*set).content)),
        };
        pointers::<pg_sys::GroupingSet>(list).map(set).collect()
    }
}

/// # Safety
/// The list, if not null, must be a list of integers that are positive.
unsafe fn references(list: *mut pg_sys::List) -> Vec<u32> {
    // SAFETY: by the caller's promise.
    unsafe { cells(list).map(|it| it.int_value.cast_unsigned()).collect() }
}

/// # Safety
/// The lists must be of OIDs, integers and OIDs.
unsafe fn column_types(
    types: *mut pg_sys::List,
    typmods: *mut pg_sys::List,
    collations: *mut pg_sys::List,
) -> Vec<(Oid, i32, Oid)> {
    // SAFETY: by the caller's promise.
    unsafe {
        cells(types)
            .zip(cells(typmods))
            .zip(cells(collations))
            .map(|((ty, typmod), collation)| (ty.oid_value, typmod.int_value, collation.oid_value))
            .collect()
    }
}

/// # Safety
/// The pointer must be null or a C string.
pub(super) unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: by the caller's promise.
    Some(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}
