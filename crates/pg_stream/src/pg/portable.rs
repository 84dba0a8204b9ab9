//! Trees whose text says all that they mean.
//!
//! PostgreSQL prints `IS DISTINCT FROM`, `NULLIF`, `CASE x WHEN` and `USING` without the operator that
//! they compare by, and takes the one called `=` that it finds when it reads the text. For types that
//! PostgreSQL did not bring that may be another one. So these are written out with their operator.

use std::ffi::c_void;
use std::ptr;

use pgrx::pg_sys;
use pgrx::pg_sys::{Datum, NodeTag};
use pgrx::prelude::*;

use super::node::{Node, Query, Step, pointers};
use super::types::{self, Oid};

/// The query, and those in it, with such expressions written out.
pub fn portable(query: Query<'_>) -> Query<'_> {
    if !has_comparison(query) {
        return query;
    }
    // SAFETY: the mutator copies what it changes; the original stays as it is.
    unsafe {
        let mutated = mutated(query.node().as_ptr(), ptr::null_mut());
        Node::from_ptr(mutated).map_or(query, Query)
    }
}

/// How rows are compared in a way that PostgreSQL cannot print, if they are: by their order with an
/// operator that PostgreSQL did not bring, or with those of a sub-query by operators of which not all
/// have the name of the first.
pub fn compares_rows(query: Query<'_>) -> Option<&'static str> {
    let mut found = None;
    query.node().visit(&mut |node| {
        // SAFETY: each call follows the tag.
        let words = unsafe {
            match node.tag() {
                NodeTag::T_RowCompareExpr if is_foreign_order(node.as_ptr()) => {
                    Some("by the order of a type that PostgreSQL did not bring")
                }
                NodeTag::T_SubLink if is_mixed_comparison(node.as_ptr()) => {
                    Some("with those of a sub-query by operators of different schemas")
                }
                _ => None,
            }
        };
        found = found.or(words);
        Step::Into
    });
    found
}

/// # Safety
/// The pointer must be to a comparison of rows by their order.
unsafe fn is_foreign_order(row: *mut pg_sys::RowCompareExpr) -> bool {
    // SAFETY: by the caller's promise; the list is one of OIDs.
    unsafe {
        let operators = (*row).opnos;
        let count = (*operators).length as usize;
        (0..count).any(|it| !types::is_builtin((*(*operators).elements.add(it)).oid_value))
    }
}

/// Whether a sub-query's rows are compared by operators of which one is foreign, and not all have the
/// name of the first.
///
/// # Safety
/// The pointer must be to a sub-query in an expression.
unsafe fn is_mixed_comparison(link: *mut pg_sys::SubLink) -> bool {
    // SAFETY: by the caller's promise; each cast follows the tag.
    unsafe {
        let test = (*link).testexpr;
        if test.is_null() || (*test).type_ != NodeTag::T_BoolExpr {
            return false;
        }
        let operators: Vec<Oid> =
            pointers::<pg_sys::OpExpr>((*test.cast::<pg_sys::BoolExpr>()).args)
                .filter(|it| (**it).xpr.type_ == NodeTag::T_OpExpr)
                .map(|it| (*it).opno)
                .collect();
        let mut names = operators.iter().map(|it| types::operator_sql(*it));
        let first = names.next();
        !operators.iter().all(|it| types::is_builtin(*it)) && names.any(|it| Some(it) != first)
    }
}

fn has_comparison(query: Query<'_>) -> bool {
    let mut found = false;
    query.node().visit(&mut |node| {
        // SAFETY: each cast follows the tag.
        found |= unsafe {
            match node.tag() {
                NodeTag::T_DistinctExpr | NodeTag::T_NullIfExpr => is_foreign(node.as_ptr()),
                NodeTag::T_CaseExpr => is_foreign_case(node.as_ptr()),
                NodeTag::T_JoinExpr => is_foreign_join(node.as_ptr()),
                _ => false,
            }
        };
        Step::Into
    });
    found
}

/// Whether the operator is none of PostgreSQL's own.
///
/// # Safety
/// The pointer must be to an operator expression.
unsafe fn is_foreign(expression: *mut pg_sys::OpExpr) -> bool {
    // SAFETY: by the caller's promise.
    !types::is_builtin(unsafe { (*expression).opno })
}

/// # Safety
/// The pointer must be to a CASE.
unsafe fn is_foreign_case(case: *mut pg_sys::CaseExpr) -> bool {
    // SAFETY: by the caller's promise.
    unsafe {
        !(*case).arg.is_null()
            && pointers::<pg_sys::CaseWhen>((*case).args).any(|it| {
                let test = (*it).expr;
                (*test).type_ == NodeTag::T_OpExpr && is_foreign(test.cast())
            })
    }
}

/// # Safety
/// The pointer must be to a join.
unsafe fn is_foreign_join(join: *mut pg_sys::JoinExpr) -> bool {
    // SAFETY: by the caller's promise; the condition is an expression or null.
    unsafe {
        if (*join).usingClause.is_null() {
            return false;
        }
        let mut found = false;
        if let Some(condition) = Node::from_ptr((*join).quals) {
            condition.visit(&mut |node| {
                found |= node.tag() == NodeTag::T_OpExpr && is_foreign(node.as_ptr());
                Step::Into
            });
        }
        found
    }
}

/// # Safety
/// The pointer must be null or a node.
unsafe fn mutated(node: *mut pg_sys::Node, context: *mut c_void) -> *mut pg_sys::Node {
    if node.is_null() {
        return node;
    }
    super::query::check_depth();
    // SAFETY: each cast follows the tag. A copy is changed where something is.
    unsafe {
        if (*node).type_ == NodeTag::T_Query {
            let query = with_foreign_joins(node.cast());
            return pg_sys::query_tree_mutator_impl(query, Some(callback), context, 0).cast();
        }
        let copy = pg_sys::expression_tree_mutator_impl(node, Some(callback), context);
        match (*copy).type_ {
            NodeTag::T_DistinctExpr if is_foreign(copy.cast()) => distinct(copy.cast()),
            NodeTag::T_NullIfExpr if is_foreign(copy.cast()) => null_if(copy.cast()),
            NodeTag::T_CaseExpr if is_foreign_case(copy.cast()) => {
                search(copy.cast());
                copy
            }
            NodeTag::T_JoinExpr if is_foreign_join(copy.cast()) => {
                let join = copy.cast::<pg_sys::JoinExpr>();
                (*join).usingClause = ptr::null_mut();
                (*join).join_using_alias = ptr::null_mut();
                copy
            }
            _ => copy,
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn callback(
    node: *mut pg_sys::Node,
    context: *mut c_void,
) -> *mut pg_sys::Node {
    // SAFETY: PostgreSQL hands us nodes of the tree.
    unsafe { mutated(node, context) }
}

/// A query whose joins lose their USING, with the columns that these merge replaced by what they are.
///
/// # Safety
/// The pointer must be to a query.
unsafe fn with_foreign_joins(query: *mut pg_sys::Query) -> *mut pg_sys::Query {
    // SAFETY: by the caller's promise; a copy is changed.
    unsafe {
        let mut joins = Vec::new();
        if let Some(from) = Node::from_ptr((*query).jointree) {
            from.visit(&mut |node| {
                if node.tag() == NodeTag::T_JoinExpr && is_foreign_join(node.as_ptr()) {
                    joins.push((*node.as_ptr::<pg_sys::JoinExpr>()).rtindex as usize);
                }
                if node.tag() == NodeTag::T_Query { Step::Over } else { Step::Into }
            });
        }
        if joins.is_empty() {
            return query;
        }
        let copy: *mut pg_sys::Query = pg_sys::copyObjectImpl(query.cast()).cast();
        let flat =
            |node: *mut pg_sys::Node| pg_sys::flatten_join_alias_vars(ptr::null_mut(), query, node);
        (*copy).targetList = flat((*copy).targetList.cast()).cast();
        (*copy).jointree = flat((*copy).jointree.cast()).cast();
        (*copy).havingQual = flat((*copy).havingQual);
        for (index, entry) in pointers::<pg_sys::RangeTblEntry>((*copy).rtable).enumerate() {
            (*entry).groupexprs = flat((*entry).groupexprs.cast()).cast();
            (*entry).functions = flat((*entry).functions.cast()).cast();
            (*entry).tablefunc = flat((*entry).tablefunc.cast()).cast();
            (*entry).values_lists = flat((*entry).values_lists.cast()).cast();
            (*entry).subquery = flat((*entry).subquery.cast()).cast();
            if joins.contains(&(index + 1)) {
                (*entry).joinmergedcols = 0;
            }
        }
        copy
    }
}

/// `CASE WHEN num_nulls(a, b) = 2 THEN false WHEN num_nulls(a, b) = 1 THEN true ELSE NOT a = b END`,
/// with the operator.
///
/// # Safety
/// The pointer must be to a DistinctExpr that is ours to change.
unsafe fn distinct(expression: *mut pg_sys::OpExpr) -> *mut pg_sys::Node {
    // SAFETY: nodes are allocated here, around copies of the operands.
    unsafe {
        let arguments = (*expression).args;
        (*expression).xpr.type_ = NodeTag::T_OpExpr;
        let negated = pg_sys::lappend(ptr::null_mut(), expression.cast());
        let negated = pg_sys::makeBoolExpr(pg_sys::BoolExprType::NOT_EXPR, negated, -1);
        let constant = |value| pg_sys::makeBoolConst(value, false);
        let both = when(nulls(arguments, 2), constant(false));
        let one = when(nulls(arguments, 1), constant(true));
        case(pg_sys::BOOLOID, pg_sys::InvalidOid, &[both, one], negated.cast())
    }
}

/// `CASE WHEN num_nulls(a, b) > 0 THEN a WHEN a = b THEN NULL ELSE a END`, with the operator.
///
/// # Safety
/// The pointer must be to a NullIfExpr that is ours to change.
unsafe fn null_if(expression: *mut pg_sys::OpExpr) -> *mut pg_sys::Node {
    // SAFETY: nodes are allocated here, around copies of the operands.
    unsafe {
        let (ty, collation) = ((*expression).opresulttype, (*expression).opcollid);
        let arguments = (*expression).args;
        let first = (*(*arguments).elements).ptr_value.cast::<pg_sys::Node>();
        let again = || pg_sys::copyObjectImpl(first.cast()).cast::<pg_sys::Node>();
        (*expression).xpr.type_ = NodeTag::T_OpExpr;
        (*expression).opresulttype = pg_sys::BOOLOID;
        (*expression).opcollid = pg_sys::InvalidOid;
        let typmod = pg_sys::exprTypmod(first);
        let null = pg_sys::makeNullConst(ty, typmod, collation);
        let whens = [when(nulls(arguments, 1), again()), when(nulls(arguments, 2), again())];
        let equal = when(expression.cast(), null.cast());
        case(ty, collation, &[whens[0], whens[1], equal], again())
    }
}

/// `num_nulls(arguments) = count`.
///
/// # Safety
/// The list must be of expressions.
unsafe fn nulls(arguments: *mut pg_sys::List, count: i32) -> *mut pg_sys::Node {
    // SAFETY: nodes are allocated here, around copies of the arguments.
    unsafe {
        let arguments = pg_sys::copyObjectImpl(arguments.cast()).cast();
        let call = pg_sys::makeFuncExpr(
            pg_sys::F_NUM_NULLS.into(),
            pg_sys::INT4OID,
            arguments,
            pg_sys::InvalidOid,
            pg_sys::InvalidOid,
            pg_sys::CoercionForm::COERCE_EXPLICIT_CALL,
        );
        let none = pg_sys::InvalidOid;
        let value = Datum::from(count);
        let constant = pg_sys::makeConst(pg_sys::INT4OID, -1, none, 4, value, false, true);
        let equal = pg_sys::make_opclause(
            pg_sys::Int4EqualOperator.into(),
            pg_sys::BOOLOID,
            false,
            call.cast(),
            constant.cast(),
            none,
            none,
        );
        pg_sys::set_opfuncid(equal.cast());
        equal.cast()
    }
}

/// # Safety
/// Both must be expressions.
unsafe fn when(test: *mut pg_sys::Node, result: *mut pg_sys::Node) -> *mut pg_sys::CaseWhen {
    // SAFETY: the allocation is of the right size, and zeroes are valid in all other fields.
    unsafe {
        let when = pg_sys::palloc0(size_of::<pg_sys::CaseWhen>()).cast::<pg_sys::CaseWhen>();
        (*when).xpr.type_ = NodeTag::T_CaseWhen;
        (*when).expr = test.cast();
        (*when).result = result.cast();
        (*when).location = -1;
        when
    }
}

/// # Safety
/// The results must be expressions of the type.
unsafe fn case(
    ty: Oid,
    collation: Oid,
    whens: &[*mut pg_sys::CaseWhen],
    otherwise: *mut pg_sys::Node,
) -> *mut pg_sys::Node {
    // SAFETY: the allocation is of the right size, and zeroes are valid in all other fields.
    unsafe {
        let case = pg_sys::palloc0(size_of::<pg_sys::CaseExpr>()).cast::<pg_sys::CaseExpr>();
        (*case).xpr.type_ = NodeTag::T_CaseExpr;
        (*case).casetype = ty;
        (*case).casecollid = collation;
        (*case).args =
            whens.iter().fold(ptr::null_mut(), |list, it| pg_sys::lappend(list, it.cast()));
        (*case).defresult = otherwise.cast();
        (*case).location = -1;
        case.cast()
    }
}

/// Makes `CASE x WHEN y` one that tests `x = y`, with the operator.
///
/// # Safety
/// The pointer must be to a CASE that is ours to change.
unsafe fn search(case: *mut pg_sys::CaseExpr) {
    // SAFETY: by the caller's promise. What is tested is the first operand of each condition.
    unsafe {
        let subject = (*case).arg.cast::<pg_sys::Node>();
        for when in pointers::<pg_sys::CaseWhen>((*case).args) {
            let test = (*when).expr;
            if (*test).type_ == NodeTag::T_OpExpr {
                let list = (*test.cast::<pg_sys::OpExpr>()).args;
                let first = &raw mut (*(*list).elements).ptr_value;
                *first = with_subject((*first).cast(), subject).cast();
            }
        }
        (*case).arg = ptr::null_mut();
    }
}

/// # Safety
/// Both must be expressions.
unsafe fn with_subject(node: *mut pg_sys::Node, subject: *mut pg_sys::Node) -> *mut pg_sys::Node {
    // SAFETY: by the caller's promise; the mutator copies.
    unsafe { subject_callback(node, subject.cast()) }
}

#[pg_guard]
unsafe extern "C-unwind" fn subject_callback(
    node: *mut pg_sys::Node,
    subject: *mut c_void,
) -> *mut pg_sys::Node {
    if node.is_null() {
        return node;
    }
    // SAFETY: PostgreSQL hands us nodes of the tree; the context is an expression. An inner CASE and
    // an array coercion have subjects of their own.
    unsafe {
        match (*node).type_ {
            NodeTag::T_CaseTestExpr => pg_sys::copyObjectImpl(subject).cast(),
            NodeTag::T_CaseExpr | NodeTag::T_ArrayCoerceExpr => node,
            _ => pg_sys::expression_tree_mutator_impl(node, Some(subject_callback), subject),
        }
    }
}
