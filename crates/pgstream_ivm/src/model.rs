//! An in-memory model: Z-sets, the meaning of plans, and a small SQL machine.
//!
//! It states the meaning of a plan as plainly as possible, so that the delta rules, the cutting
//! into stages and the printed SQL can be tested against it. Nothing in the crate proper uses it.

mod eval;
mod expression;
mod history;
mod lexer;
mod parser;
mod pipeline;
mod select;
mod value;
mod zset;

pub(crate) use self::lexer::{Token, tokens};
pub use self::{
    eval::eval,
    expression::{Call, Expression},
    history::{Content, History},
    parser::expression,
    pipeline::{Runner, cancels, delta_rows, storage},
    select::{Database, Relation, run},
    value::{Numeric, Value},
    zset::ZSet,
};

/// The values of a row, by position.
pub type Row = Vec<Value>;
