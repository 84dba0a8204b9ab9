//! The algebra of pg_stream, free of PostgreSQL.
//!
//! A query arrives as a [`plan::Plan`]: core operators over typed column positions, with scalars
//! as opaque SQL templates. [`stage::stage`] cuts it at its stateful operators, [`derive::delta`]
//! gives the change of a stateless plan, and [`sql`] prints both as SQL that PostgreSQL runs.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod aggregate;
pub mod cancel;
pub mod derive;
pub mod determined;
pub mod fixpoint;
pub mod lex;
pub mod look_up;
#[cfg(any(test, feature = "model"))]
pub mod model;
pub mod plan;
pub mod recursion;
pub mod scalar;
pub mod sql;
pub mod stage;
#[cfg(any(test, feature = "model"))]
pub mod testing;
