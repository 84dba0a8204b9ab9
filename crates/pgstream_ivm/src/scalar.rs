//! Scalars: opaque SQL expressions over the columns of an input.
//!
//! A scalar is produced once, by PostgreSQL's own deparser, and cut at once into text and column
//! holes. It is never parsed or edited as text afterwards, so that substituting a column cannot
//! touch a literal.

use std::fmt;

/// A SQL type as PostgreSQL's catalog knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// `pg_type.oid`.
    pub oid: u32,
    /// The type modifier, or -1.
    pub typmod: i32,
    /// `pg_collation.oid`, or 0.
    pub collation: u32,
    /// The type as SQL that means the same under any search path, e.g. `numeric(10,2)`.
    pub sql: String,
    /// The default equality operator, qualified, e.g. `OPERATOR(pg_catalog.=)`; `None` for a type
    /// that has no equality, such as `json`.
    pub equality: Option<String>,
    /// Whether values that are equal by it have the same binary image: true of `integer`, false of
    /// `numeric` (1.0 and 1.00), of floats (0 and -0) and of text in a nondeterministic collation.
    /// `false` when unknown.
    pub exact: bool,
    /// Whether it is a domain, which checks what is cast to it.
    pub domain: bool,
}

impl Type {
    /// `boolean`.
    pub fn boolean() -> Self {
        Self {
            oid: 16,
            typmod: -1,
            collation: 0,
            sql: "boolean".to_owned(),
            equality: Some("OPERATOR(pg_catalog.=)".to_owned()),
            exact: true,
            domain: false,
        }
    }

    /// `bigint`.
    pub fn bigint() -> Self {
        Self { oid: 20, sql: "bigint".to_owned(), ..Self::boolean() }
    }
}

/// A piece of a scalar's template.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// SQL text, copied as it is.
    Text(String),
    /// The position of a column of the input (of the left input first, then the right, in a join).
    Column(usize),
}

/// A SQL expression over the columns of an input.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scalar {
    /// The template.
    pub segments: Vec<Segment>,
    /// Type of the result.
    pub ty: Type,
    /// Whether the result can be NULL; `true` when unknown.
    pub nullable: bool,
    /// For a `numeric` result whose display scale is the same for every row, that scale.
    /// `None` when it may differ from row to row or is unknown.
    pub scale: Option<u32>,
}

impl Scalar {
    /// The column at `position`, unchanged.
    pub fn column(position: usize, column: &crate::plan::Column) -> Self {
        Self {
            segments: vec![Segment::Column(position)],
            ty: column.ty.clone(),
            nullable: column.nullable,
            scale: column.scale,
        }
    }

    /// NULL of a type, also of a domain that forbids it, as outer joins and grouping sets bring it
    /// about: nothing checks what a sub-query without rows gives.
    pub fn null(ty: &Type) -> Self {
        // `NULL::integer[]` would take a subscript that follows for a part of the type.
        let text = match ty.domain {
            true => format!("(SELECT NULL::{} WHERE false)", ty.sql),
            false => format!("(NULL::{})", ty.sql),
        };
        let segments = vec![Segment::Text(text)];
        Self { segments, ty: ty.clone(), nullable: true, scale: None }
    }

    /// The value where the condition is true, and NULL of its type elsewhere.
    pub fn only_if(self, condition: impl IntoIterator<Item = Segment>) -> Self {
        let text = |it: &str| Segment::Text(it.to_owned());
        let mut segments = vec![text("CASE WHEN ")];
        segments.extend(condition);
        segments.push(text(" THEN "));
        segments.extend(self.segments);
        if self.ty.domain {
            // Beside the NULL that CASE adds, the value would be one of the domain's base type.
            segments.push(text(" ELSE "));
            segments.extend(Self::null(&self.ty).segments);
        }
        segments.push(text(" END"));
        Self { segments, nullable: true, ..self }
    }

    /// A condition that only tells itself from others: nobody evaluates it.
    pub fn opaque_condition(text: String) -> Self {
        let segments = vec![Segment::Text(text)];
        Self { segments, ty: Type::boolean(), nullable: true, scale: None }
    }

    /// A mark (see [`crate::plan::Plan::Mark`]) at `position`, or with `wanted` false its opposite.
    pub fn is_marked(position: usize, wanted: bool) -> Self {
        let mut segments = vec![Segment::Column(position)];
        if !wanted {
            segments.insert(0, Segment::Text("NOT ".to_owned()));
        }
        Self { segments, ty: Type::boolean(), nullable: false, scale: None }
    }

    /// The position, if this scalar is a bare column.
    pub fn as_column(&self) -> Option<usize> {
        match self.segments.as_slice() {
            [Segment::Column(position)] => Some(*position),
            _ => None,
        }
    }

    /// The columns that the scalar reads, in the order of their first use.
    pub fn columns(&self) -> Vec<usize> {
        let mut columns = Vec::new();
        for segment in &self.segments {
            if let Segment::Column(position) = segment
                && !columns.contains(position)
            {
                columns.push(*position);
            }
        }
        columns
    }

    /// The same scalar over an input whose columns stand elsewhere.
    #[must_use]
    pub fn remapped(&self, place: impl Fn(usize) -> usize) -> Self {
        let segments = self
            .segments
            .iter()
            .map(|segment| match segment {
                Segment::Column(position) => Segment::Column(place(*position)),
                Segment::Text(text) => Segment::Text(text.clone()),
            })
            .collect();
        Self { segments, ..self.clone() }
    }

    /// The SQL text, with each column printed by `column`.
    pub fn print(&self, column: impl Fn(usize) -> String) -> String {
        self.segments
            .iter()
            .map(|segment| match segment {
                Segment::Text(text) => text.clone(),
                Segment::Column(position) => column(*position),
            })
            .collect()
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.print(|position| format!("#{position}")))
    }
}
