//! The relational tree.
//!
//! Every plan denotes a Z-set: rows with integer weights. Columns are positions; names are hints
//! for people. A plan is built by lowering PostgreSQL's analyzed query and is total from there on:
//! a plan in hand always has a delta.

use std::fmt;

use crate::scalar::{Scalar, Type};

/// One column of a plan's output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Column {
    /// A hint for people and for the final column names; it has no meaning inside a plan.
    pub name: String,
    /// The column's type.
    pub ty: Type,
    /// Whether the column can be NULL; `true` when unknown.
    pub nullable: bool,
    /// See [`Scalar::scale`].
    pub scale: Option<u32>,
}

impl Column {
    /// What [`Plan::Mark`] adds.
    pub fn mark() -> Self {
        Self { name: "mark".to_owned(), ty: Type::boolean(), nullable: false, scale: None }
    }

    /// The column as a recursion has it, when the base has `self`.
    #[must_use]
    pub fn of_recursion(self) -> Self {
        Self { scale: None, nullable: true, ..self }
    }

    /// Whether equal values of the column have the same binary image.
    pub fn is_exact(&self) -> bool {
        const NUMERIC: u32 = 1700;
        self.ty.exact || (self.ty.oid == NUMERIC && self.scale.is_some())
    }
}

/// The columns of a plan, in order.
pub type Schema = Vec<Column>;

/// Which content of a leaf is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// The content at the snapshot of the last refresh.
    Old,
    /// The content at the snapshot of this refresh.
    New,
    /// The change between the two.
    Delta,
}

/// Where the rows of a leaf live.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A table, partitioned table or stream table, with captured changes.
    Table {
        /// `pg_class.oid`.
        oid: u32,
        /// Qualified and quoted, as it stands in a FROM clause.
        sql: String,
    },
    /// The stored output of an earlier stage.
    Stage(usize),
}

/// Reads some columns of a source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scan {
    /// What is read.
    pub source: Source,
    /// The columns read. The name is the column's true, unquoted name in the source.
    pub columns: Schema,
    /// For each column its attribute number in a table, or its position in a stage's output.
    pub attributes: Vec<usize>,
    /// Positions (in `columns`) of a key: unique, with the type's equality, among the source's
    /// rows. NULLs count as equal. `None` when there is none or when not all of it is read.
    pub key: Option<Vec<usize>>,
    /// Which content.
    pub version: Version,
    /// The row-level security policies on a table, as a condition over `columns`; `None` where every
    /// row may be seen. PostgreSQL applies them to the table itself, behind a barrier that no
    /// expression of the query looks through; the statements of a refresh do the same for its change.
    pub policy: Option<Scalar>,
}

/// What an aggregate computes, as far as maintaining it is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AggregateFunction {
    /// `count(*)`.
    CountRows,
    /// `count(argument)`.
    Count {
        /// What is counted where it is not NULL.
        argument: Scalar,
    },
    /// `sum(argument)` with an exact inverse: smallint, integer, bigint or numeric argument.
    Sum {
        /// What is added up.
        argument: Scalar,
    },
    /// `avg(argument)` with the same arguments as `Sum`.
    Average {
        /// What is averaged.
        argument: Scalar,
    },
    /// `min(argument)` or `max(argument)`.
    Extremum {
        /// What is compared.
        argument: Scalar,
        /// Which end.
        end: End,
    },
    /// `bool_and(argument)` or `bool_or(argument)`.
    Decided {
        /// What is looked at where it is not NULL.
        argument: Scalar,
        /// The value that decides as soon as there is one: `false` for `bool_and`.
        by: bool,
    },
    /// `Count`, `Sum` or `Average` of the different values of the argument, whose type has equality
    /// and can be stored. Equal values must count as much in a sum: they have the same image.
    /// Staging takes it apart where that pays, otherwise it is as `Rescan`.
    Distinct(Box<AggregateFunction>),
    /// Anything else: evaluated again over each affected group.
    Rescan,
}

/// An end of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// `min`.
    Least,
    /// `max`.
    Greatest,
}

/// One aggregate of an [`Aggregate`] node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AggregateCall {
    /// The whole call as SQL over the input's columns, e.g. `pg_catalog.sum(#1) FILTER (WHERE #2)`.
    pub call: Scalar,
    /// How it is maintained.
    pub function: AggregateFunction,
    /// The FILTER condition, for functions other than `Rescan`.
    pub filter: Option<Scalar>,
    /// A hint for people.
    pub name: String,
}

/// The order in which the calls of a window number its rows, each being `row_number()` or `rank()`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ranking {
    /// The list of ORDER BY over the input's columns. It need not have the columns of PARTITION BY.
    pub order: Scalar,
    /// For each call whether equal rows have the same number: `rank()`.
    pub has_ties: Vec<bool>,
}

/// A relational operator with its inputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Plan {
    /// One row without columns: a SELECT without FROM.
    Unit,
    /// No rows.
    Empty(Schema),
    /// A leaf.
    Scan(Scan),
    /// The rows for which the predicate is true.
    Filter {
        /// The rows.
        input: Box<Plan>,
        /// Boolean, over the input's columns.
        predicate: Scalar,
    },
    /// One output column for each scalar.
    Project {
        /// The rows.
        input: Box<Plan>,
        /// The output columns with their names.
        columns: Vec<(Scalar, String)>,
    },
    /// Each pair of rows for which the condition is true.
    InnerJoin {
        /// Its columns come first.
        left: Box<Plan>,
        /// Its columns follow.
        right: Box<Plan>,
        /// `None` for a cross join.
        on: Option<Scalar>,
    },
    /// Each pair of rows for which the condition is true, and each row of `left` without such a
    /// pair once, with NULLs for the columns of `right`.
    LeftJoin {
        /// Its columns come first.
        left: Box<Plan>,
        /// Its columns follow; all of them can be NULL.
        right: Box<Plan>,
        /// `None` for true.
        on: Option<Scalar>,
    },
    /// The rows of `left`, each with one more column, a boolean that is never NULL: whether there is
    /// a row of `right` for which the condition is true. A filter on the column makes a semi-join
    /// or an anti-join of it.
    Mark {
        /// Its columns come first.
        left: Box<Plan>,
        /// What is looked for; its columns do not come out.
        right: Box<Plan>,
        /// Over the columns of `left`, then those of `right`; `None` for true.
        on: Option<Scalar>,
        /// The additional column: a boolean.
        mark: Column,
    },
    /// The change of `Mark { left, right, on, mark }` that its right side causes. Each row of `left`
    /// that has gained its first match, or lost its last one, comes twice: with the mark that it
    /// has now and its own weight, and with the other mark and the opposite weight. It occurs in
    /// deltas only.
    MarkChange {
        /// Old content, weighted; its columns come first.
        left: Box<Plan>,
        /// New content.
        right: Box<Plan>,
        /// The change of `right`.
        change: Box<Plan>,
        /// Over the columns of `left`, then those of `right`; `None` for true.
        on: Option<Scalar>,
        /// The additional column: a boolean.
        mark: Column,
        /// Whether an index finds the matches of a row; see [`crate::look_up::with_indexes`].
        is_indexed: bool,
    },
    /// Each row with each row of a sub-query that reads nothing but the row itself: LATERAL without
    /// tables, such as a call of a set-returning function.
    Expand {
        /// Its columns come first.
        input: Box<Plan>,
        /// A SELECT over the input's columns.
        item: Scalar,
        /// The columns of `item`, which follow.
        columns: Schema,
        /// Whether a row for which `item` is empty comes out once, with NULLs.
        outer: bool,
    },
    /// The input's columns, then window functions, all over the same partitions; of that the rows
    /// for which the filter is true.
    Window {
        /// The rows.
        input: Box<Plan>,
        /// Positions of the columns of PARTITION BY; none for one partition of all rows.
        partition: Vec<usize>,
        /// Whole calls over the input's columns, e.g. `pg_catalog.rank() OVER (PARTITION BY #0
        /// ORDER BY #1)`, with their names.
        calls: Vec<(Scalar, String)>,
        /// When all calls number the rows in one order: that order.
        ranking: Option<Ranking>,
        /// Boolean, over the output; `None` for true. Rows that it drops need not be stored.
        filter: Option<Scalar>,
    },
    /// WITH RECURSIVE: the base, and the step over and over again, over a leaf that stands for what
    /// came last. See [`crate::recursion`].
    Recurse {
        /// The last column is the depth, 0.
        base: Box<Plan>,
        /// The last column is the depth, one more than that of the leaf.
        step: Box<Plan>,
        /// UNION, not UNION ALL: a row that is there already does not come again, whatever its
        /// depth. The depth that comes out is then any that is above those it is derived from.
        is_set: bool,
    },
    /// A query that is evaluated as a whole whenever something that it reads has changed.
    Opaque {
        /// The query, in a form that means the same under the search path of a refresh.
        sql: String,
        /// The tables that it reads, with the columns that it reads.
        reads: Vec<Plan>,
        /// What comes out.
        schema: Schema,
        /// The construct that cannot be maintained otherwise.
        reason: String,
    },
    /// UNION ALL of inputs with the same column types.
    Sum {
        /// At least one; the schema is that of the first, nullable where any of them is.
        inputs: Vec<Plan>,
    },
    /// The same rows with the opposite weights.
    Negate(Box<Plan>),
    /// GROUP BY. The output is the keys, then the aggregates. Without keys there is always one
    /// row. DISTINCT is an `Aggregate` over all columns with no calls.
    Aggregate {
        /// The rows.
        input: Box<Plan>,
        /// Positions of the grouping columns in the input. Their types have an equality.
        keys: Vec<usize>,
        /// The aggregates.
        calls: Vec<AggregateCall>,
    },
}

impl Plan {
    /// The columns that come out.
    pub fn schema(&self) -> Schema {
        match self {
            Self::Unit => Vec::new(),
            Self::Empty(schema) => schema.clone(),
            Self::Scan(scan) => scan.columns.clone(),
            Self::Filter { input, .. } | Self::Negate(input) => input.schema(),
            Self::Project { columns, .. } => {
                columns.iter().map(|(scalar, name)| named(scalar, name)).collect()
            }
            Self::InnerJoin { left, right, .. } => {
                let mut schema = left.schema();
                schema.extend(right.schema());
                schema
            }
            Self::LeftJoin { left, right, .. } => {
                let mut schema = left.schema();
                schema.extend(right.schema().into_iter().map(nullable));
                schema
            }
            Self::Mark { left, mark, .. } | Self::MarkChange { left, mark, .. } => {
                let mut schema = left.schema();
                schema.push(mark.clone());
                schema
            }
            Self::Expand { input, columns, outer, .. } => {
                let mut schema = input.schema();
                let columns = columns.iter().cloned();
                schema.extend(columns.map(|it| if *outer { nullable(it) } else { it }));
                schema
            }
            Self::Window { input, calls, .. } => {
                let mut schema = input.schema();
                schema.extend(calls.iter().map(|(call, name)| named(call, name)));
                schema
            }
            Self::Recurse { base, .. } => {
                let mut schema = base.schema();
                let depth = schema.pop().expect("the last column is the depth");
                schema.into_iter().map(Column::of_recursion).chain([depth]).collect()
            }
            Self::Opaque { schema, .. } => schema.clone(),
            Self::Sum { inputs } => {
                let mut schemas = inputs.iter().map(Self::schema);
                let first = schemas.next().unwrap_or_default();
                schemas.fold(first, |mut all, next| {
                    for (column, other) in all.iter_mut().zip(next) {
                        column.nullable |= other.nullable;
                        column.ty.exact &= other.ty.exact;
                        if column.scale != other.scale {
                            column.scale = None;
                        }
                    }
                    all
                })
            }
            Self::Aggregate { input, keys, calls } => {
                let inner = input.schema();
                let keys = keys.iter().map(|key| inner[*key].clone());
                keys.chain(calls.iter().map(|it| named(&it.call, &it.name))).collect()
            }
        }
    }

    /// The direct inputs.
    pub fn inputs(&self) -> Vec<&Self> {
        match self {
            Self::Unit | Self::Empty(_) | Self::Scan(_) => Vec::new(),
            Self::Filter { input, .. }
            | Self::Project { input, .. }
            | Self::Negate(input)
            | Self::Expand { input, .. }
            | Self::Window { input, .. }
            | Self::Aggregate { input, .. } => vec![input],
            Self::InnerJoin { left, right, .. }
            | Self::LeftJoin { left, right, .. }
            | Self::Mark { left, right, .. } => vec![left, right],
            Self::MarkChange { left, right, change, .. } => vec![left, right, change],
            Self::Recurse { base, step, .. } => vec![base, step],
            Self::Sum { inputs } | Self::Opaque { reads: inputs, .. } => inputs.iter().collect(),
        }
    }

    /// How many operators and columns it is made of.
    pub fn size(&self) -> usize {
        let own = match self {
            Self::Empty(schema) | Self::Opaque { schema, .. } => schema.len(),
            Self::Scan(scan) => scan.columns.len(),
            Self::Project { columns, .. } => columns.len(),
            Self::Expand { columns, .. } => columns.len(),
            Self::Window { calls, .. } => calls.len(),
            Self::Aggregate { keys, calls, .. } => keys.len() + calls.len(),
            _ => 0,
        };
        1 + own + self.inputs().into_iter().map(Self::size).sum::<usize>()
    }

    /// Whether rows are paired or matched with others.
    pub fn has_join(&self) -> bool {
        let is_join = matches!(
            self,
            Self::InnerJoin { .. }
                | Self::LeftJoin { .. }
                | Self::Mark { .. }
                | Self::MarkChange { .. }
        );
        is_join || self.inputs().into_iter().any(Self::has_join)
    }

    /// The leaves, from left to right.
    pub fn scans(&self) -> Vec<&Scan> {
        match self {
            Self::Scan(scan) => vec![scan],
            _ => self.inputs().into_iter().flat_map(Self::scans).collect(),
        }
    }

    /// The same plan with every direct input replaced.
    #[must_use]
    pub fn map_inputs(self, mut f: impl FnMut(Self) -> Self) -> Self {
        match self {
            Self::Unit | Self::Empty(_) | Self::Scan(_) => self,
            Self::Filter { input, predicate } => {
                Self::Filter { input: Box::new(f(*input)), predicate }
            }
            Self::Project { input, columns } => {
                Self::Project { input: Box::new(f(*input)), columns }
            }
            Self::Negate(input) => Self::Negate(Box::new(f(*input))),
            Self::InnerJoin { left, right, on } => {
                Self::InnerJoin { left: Box::new(f(*left)), right: Box::new(f(*right)), on }
            }
            Self::LeftJoin { left, right, on } => {
                Self::LeftJoin { left: Box::new(f(*left)), right: Box::new(f(*right)), on }
            }
            Self::Mark { left, right, on, mark } => {
                Self::Mark { left: Box::new(f(*left)), right: Box::new(f(*right)), on, mark }
            }
            Self::MarkChange { left, right, change, on, mark, is_indexed } => Self::MarkChange {
                left: Box::new(f(*left)),
                right: Box::new(f(*right)),
                change: Box::new(f(*change)),
                on,
                mark,
                is_indexed,
            },
            Self::Expand { input, item, columns, outer } => {
                Self::Expand { input: Box::new(f(*input)), item, columns, outer }
            }
            Self::Window { input, partition, calls, ranking, filter } => {
                Self::Window { input: Box::new(f(*input)), partition, calls, ranking, filter }
            }
            Self::Recurse { base, step, is_set } => {
                Self::Recurse { base: Box::new(f(*base)), step: Box::new(f(*step)), is_set }
            }
            Self::Opaque { sql, reads, schema, reason } => {
                Self::Opaque { sql, reads: reads.into_iter().map(f).collect(), schema, reason }
            }
            Self::Sum { inputs } => Self::Sum { inputs: inputs.into_iter().map(f).collect() },
            Self::Aggregate { input, keys, calls } => {
                Self::Aggregate { input: Box::new(f(*input)), keys, calls }
            }
        }
    }

    /// The rows of `left` that have a match in `right`, or with `wanted` false those that have none.
    #[must_use]
    pub fn semi_join(left: Self, right: Self, on: Option<Scalar>, wanted: bool) -> Self {
        let width = left.schema().len();
        Self::matched(left, right, on, wanted).columns(0..width)
    }

    /// FULL JOIN: the outer join, and the rows of `right` without a match.
    #[must_use]
    pub fn full_join(left: Self, right: Self, on: Option<Scalar>) -> Self {
        let (left_schema, width) = (left.schema(), right.schema().len());
        let left_width = left_schema.len();
        let swapped = |it| if it < left_width { it + width } else { it - left_width };
        let swapped_on = on.as_ref().map(|it| it.remapped(swapped));
        let alone = Self::semi_join(right.clone(), left.clone(), swapped_on, false);
        let alone = alone.with_nulls_for(left_schema);
        let alone = alone.columns((width..width + left_width).chain(0..width));
        let join = Self::LeftJoin { left: Box::new(left), right: Box::new(right), on };
        Self::Sum { inputs: vec![join, alone] }
    }

    /// A filter on a mark.
    fn matched(left: Self, right: Self, on: Option<Scalar>, wanted: bool) -> Self {
        let predicate = Scalar::is_marked(left.schema().len(), wanted);
        let (left, right) = (Box::new(left), Box::new(right));
        let input = Box::new(Self::Mark { left, right, on, mark: Column::mark() });
        Self::Filter { input, predicate }
    }

    /// The rows with NULLs after them. A literal NULL would be checked by a domain that forbids it.
    #[must_use]
    pub fn with_nulls_for(self, columns: Schema) -> Self {
        let right = Box::new(Self::Empty(columns));
        Self::LeftJoin { left: Box::new(self), right, on: None }
    }

    /// The columns at these positions.
    #[must_use]
    pub fn columns(self, positions: impl IntoIterator<Item = usize>) -> Self {
        let schema = self.schema();
        let column = |at| (Scalar::column(at, &schema[at]), schema[at].name.clone());
        let columns = positions.into_iter().map(column).collect();
        Self::Project { input: Box::new(self), columns }
    }

    /// SELECT DISTINCT: a group for each distinct row.
    #[must_use]
    pub fn distinct(self) -> Self {
        let keys = (0..self.schema().len()).collect();
        Self::Aggregate { input: Box::new(self), keys, calls: Vec::new() }
    }

    /// Positions of a key of the output: unique with the types' equality, NULLs counting as
    /// equal. Weights are ignored: the answer is about old or new content, not about a delta.
    pub fn key(&self) -> Option<Vec<usize>> {
        match self {
            Self::Unit | Self::Empty(_) => Some(Vec::new()),
            Self::Scan(scan) => scan.key.clone(),
            Self::Filter { input, .. } => input.key(),
            Self::Project { input, columns } => input
                .key()?
                .into_iter()
                .map(|key| columns.iter().position(|(it, _)| it.as_column() == Some(key)))
                .collect(),
            Self::Mark { left, .. } => left.key(),
            Self::Window { input, .. } => input.key(),
            Self::Recurse { base, is_set: true, .. } => {
                Some((0..base.schema().len() - 1).collect())
            }
            Self::Expand { .. } | Self::Recurse { .. } | Self::Opaque { .. } => None,
            // A row without a pair has NULLs for the right key, which no pair has.
            Self::InnerJoin { left, right, .. } | Self::LeftJoin { left, right, .. } => {
                let width = left.schema().len();
                let mut key = left.key()?;
                key.extend(right.key()?.into_iter().map(|it| it + width));
                Some(key)
            }
            Self::Sum { inputs } => match inputs.as_slice() {
                [only] => only.key(),
                _ => None,
            },
            Self::Negate(_) | Self::MarkChange { .. } => None,
            Self::Aggregate { keys, .. } => Some((0..keys.len()).collect()),
        }
    }
}

fn nullable(column: Column) -> Column {
    Column { nullable: true, ..column }
}

fn named(scalar: &Scalar, name: &str) -> Column {
    Column {
        name: name.to_owned(),
        ty: scalar.ty.clone(),
        nullable: scalar.nullable,
        scale: scalar.scale,
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_tree(self, f, 0)
    }
}

fn write_tree(plan: &Plan, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
    write!(f, "{:indent$}", "", indent = depth * 2)?;
    match plan {
        Plan::Unit => writeln!(f, "Unit")?,
        Plan::Empty(schema) => writeln!(f, "Empty ({} columns)", schema.len())?,
        Plan::Scan(scan) => {
            let version = match scan.version {
                Version::Old => ", old",
                Version::New => "",
                Version::Delta => ", delta",
            };
            let columns: Vec<&str> = scan.columns.iter().map(|it| it.name.as_str()).collect();
            match &scan.source {
                Source::Table { sql, .. } => write!(f, "Scan {sql}")?,
                Source::Stage(stage) => write!(f, "Scan stage {stage}")?,
            }
            writeln!(f, "{version} [{}]", columns.join(", "))?;
        }
        Plan::Filter { predicate, .. } => writeln!(f, "Filter {predicate}")?,
        Plan::Project { columns, .. } => {
            let columns: Vec<String> = columns.iter().map(|(it, _)| it.to_string()).collect();
            writeln!(f, "Project [{}]", columns.join(", "))?;
        }
        Plan::InnerJoin { on: Some(on), .. } => writeln!(f, "InnerJoin {on}")?,
        Plan::InnerJoin { on: None, .. } => writeln!(f, "InnerJoin")?,
        Plan::LeftJoin { on: Some(on), .. } => writeln!(f, "LeftJoin {on}")?,
        Plan::LeftJoin { on: None, .. } => writeln!(f, "LeftJoin")?,
        Plan::Mark { on: Some(on), .. } => writeln!(f, "Mark {on}")?,
        Plan::Mark { on: None, .. } => writeln!(f, "Mark")?,
        Plan::MarkChange { on: Some(on), .. } => writeln!(f, "MarkChange {on}")?,
        Plan::MarkChange { on: None, .. } => writeln!(f, "MarkChange")?,
        Plan::Expand { item, outer, .. } => {
            writeln!(f, "Expand{} {item}", if *outer { " outer" } else { "" })?;
        }
        Plan::Window { partition, calls, filter, .. } => {
            let partition: Vec<String> = partition.iter().map(|it| format!("#{it}")).collect();
            let calls: Vec<String> = calls.iter().map(|(it, _)| it.to_string()).collect();
            write!(f, "Window [{}] [{}]", partition.join(", "), calls.join(", "))?;
            filter.iter().try_for_each(|it| write!(f, " where {it}"))?;
            writeln!(f)?;
        }
        Plan::Recurse { is_set, .. } => {
            writeln!(f, "Recurse{}", if *is_set { " to a fixpoint" } else { "" })?;
        }
        Plan::Opaque { reason, .. } => writeln!(f, "Opaque ({reason})")?,
        Plan::Sum { .. } => writeln!(f, "Sum")?,
        Plan::Negate(_) => writeln!(f, "Negate")?,
        Plan::Aggregate { keys, calls, .. } => {
            let keys: Vec<String> = keys.iter().map(|it| format!("#{it}")).collect();
            let calls: Vec<String> = calls.iter().map(|it| it.call.to_string()).collect();
            writeln!(f, "Aggregate [{}] [{}]", keys.join(", "), calls.join(", "))?;
        }
    }
    plan.inputs().into_iter().try_for_each(|input| write_tree(input, f, depth + 1))
}
