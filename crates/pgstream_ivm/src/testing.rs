//! Building plans from text, for tests.
//!
//! Scalars are written as they print, `#0 = #1`; their types are inferred from a small catalog of
//! tables, whose column names are those that a careless printer would confuse with its own.

use crate::{
    model::{Call, Content, Database, Expression, History, Token, Value, expression, tokens},
    plan::{
        AggregateCall, AggregateFunction, Column, End, Plan, Ranking, Scan, Schema, Source, Version,
    },
    recursion::{ITSELF, recurse},
    scalar::{Scalar, Segment, Type},
    sql::delta_name,
};

/// A table that tests can scan.
pub struct Table {
    /// The name in [`scan`].
    pub name: &'static str,
    /// `pg_class.oid`.
    pub oid: u32,
    /// Names, types, and whether they can be NULL.
    pub columns: [(&'static str, Kind, bool); 2],
    /// See [`Scan::key`].
    pub key: Option<&'static [usize]>,
}

/// A column's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `integer`.
    Integer,
    /// `numeric`.
    Numeric,
    /// `numeric(10,2)`.
    Price,
    /// `text`.
    Text,
}

/// The tables.
pub const TABLES: [Table; 5] = [
    Table {
        name: "a",
        oid: 1,
        columns: [("w", Kind::Integer, true), ("k0", Kind::Integer, true)],
        key: None,
    },
    Table {
        name: "b",
        oid: 2,
        columns: [("c0", Kind::Integer, true), ("n", Kind::Numeric, true)],
        key: None,
    },
    Table {
        name: "c",
        oid: 3,
        columns: [("id", Kind::Integer, false), ("s", Kind::Text, true)],
        key: Some(&[0]),
    },
    Table {
        name: "d",
        oid: 4,
        columns: [("x", Kind::Integer, false), ("p", Kind::Price, false)],
        key: None,
    },
    Table {
        name: "e",
        oid: 5,
        columns: [("v", Kind::Numeric, true), ("rid", Kind::Integer, true)],
        key: Some(&[0]),
    },
];

impl Table {
    /// The table as a source.
    pub fn source(&self) -> Source {
        Source::Table { oid: self.oid, sql: format!("public.{}", self.name) }
    }

    fn column(&self, position: usize) -> Column {
        let (name, kind, nullable) = self.columns[position];
        let (ty, scale) = match kind {
            Kind::Integer => (integer(), None),
            Kind::Numeric => (numeric(), None),
            Kind::Price => {
                let sql = "numeric(10,2)".to_owned();
                (Type { typmod: 655_366, sql, ..numeric() }, Some(2))
            }
            Kind::Text => (text(), None),
        };
        Column { name: name.to_owned(), ty, nullable, scale }
    }
}

fn type_of(oid: u32, sql: &str) -> Type {
    Type {
        oid,
        typmod: -1,
        collation: if oid == 25 { 100 } else { 0 },
        sql: sql.to_owned(),
        equality: Some("OPERATOR(pg_catalog.=)".to_owned()),
        exact: oid != 1700,
        domain: false,
    }
}

fn integer() -> Type {
    type_of(23, "integer")
}

fn bigint() -> Type {
    type_of(20, "bigint")
}

fn numeric() -> Type {
    type_of(1700, "numeric")
}

fn text() -> Type {
    type_of(25, "text")
}

/// The new content of all tables and their deltas, as a refresh finds them.
pub fn database(history: &History) -> Database {
    let mut database = Database::new();
    for table in &TABLES {
        let content: &Content = history.content(&table.source());
        let columns = table.columns.map(|it| it.0);
        let [rows, delta] = content.relations(&columns, 1..3);
        database.insert(format!("public.{}", table.name), rows);
        database.insert(delta_name(&table.source()), delta);
    }
    database
}

/// Reads both columns of a table.
pub fn scan(name: &str) -> Plan {
    scan_columns(name, &[0, 1])
}

/// Reads the columns of a table at `positions`, which count from 0.
pub fn scan_columns(name: &str, positions: &[usize]) -> Plan {
    let table = TABLES.iter().find(|it| it.name == name).expect("one of the tables");
    let place = |key: &usize| positions.iter().position(|it| it == key);
    Plan::Scan(Scan {
        source: table.source(),
        columns: positions.iter().map(|it| table.column(*it)).collect(),
        attributes: positions.iter().map(|it| it + 1).collect(),
        key: table.key.and_then(|key| key.iter().map(place).collect()),
        version: Version::New,
        policy: None,
    })
}

/// WHERE.
pub fn filter(input: Plan, predicate: &str) -> Plan {
    let predicate = scalar(predicate, &input.schema());
    Plan::Filter { input: Box::new(input), predicate }
}

/// A select list. Columns are named after their scalars.
pub fn project(input: Plan, columns: &[&str]) -> Plan {
    let schema = input.schema();
    let columns = columns.iter().map(|it| (scalar(it, &schema), (*it).to_owned())).collect();
    Plan::Project { input: Box::new(input), columns }
}

/// JOIN … ON.
pub fn join(left: Plan, right: Plan, on: &str) -> Plan {
    let mut plan = cross_join(left, right);
    let condition = scalar(on, &plan.schema());
    if let Plan::InnerJoin { on, .. } = &mut plan {
        *on = Some(condition);
    }
    plan
}

/// CROSS JOIN.
pub fn cross_join(left: Plan, right: Plan) -> Plan {
    Plan::InnerJoin { left: Box::new(left), right: Box::new(right), on: None }
}

/// LEFT JOIN … ON.
pub fn left_join(left: Plan, right: Plan, on: &str) -> Plan {
    let condition = scalar(on, &cross_join(left.clone(), right.clone()).schema());
    Plan::LeftJoin { left: Box::new(left), right: Box::new(right), on: Some(condition) }
}

/// FULL JOIN … ON.
pub fn full_join(left: Plan, right: Plan, on: &str) -> Plan {
    let on = scalar(on, &cross_join(left.clone(), right.clone()).schema());
    Plan::full_join(left, right, Some(on))
}

/// The rows of `left`, and whether EXISTS finds one of `right`.
pub fn mark(left: Plan, right: Plan, on: &str) -> Plan {
    let on = Some(scalar(on, &cross_join(left.clone(), right.clone()).schema()));
    Plan::Mark { left: Box::new(left), right: Box::new(right), on, mark: Column::mark() }
}

/// UNION ALL.
pub fn union_all(inputs: impl IntoIterator<Item = Plan>) -> Plan {
    Plan::Sum { inputs: inputs.into_iter().collect() }
}

/// LATERAL, with items such as `SELECT i1.x FROM generate_series(1, #0) AS i1(x)`, all of whose
/// columns are integers. LEFT JOIN LATERAL if `outer`.
pub fn expand(input: Plan, item: &str, names: &[&str], outer: bool) -> Plan {
    let segments = cut(item);
    let item = Scalar { segments, ty: integer(), nullable: true, scale: None };
    let column = |name: &&str| Column {
        name: (*name).to_owned(),
        ty: integer(),
        nullable: true,
        scale: None,
    };
    Plan::Expand {
        input: Box::new(input),
        item,
        columns: names.iter().map(column).collect(),
        outer,
    }
}

/// GROUP BY, with calls such as `sum(#1) FILTER (WHERE #0 > 1)`.
pub fn aggregate(input: Plan, keys: &[usize], calls: &[&str]) -> Plan {
    let schema = input.schema();
    let calls = calls.iter().map(|it| aggregate_call(it, &schema)).collect();
    Plan::Aggregate { input: Box::new(input), keys: keys.to_vec(), calls }
}

/// WITH RECURSIVE … UNION ALL, without the depth; `step` is made of the recursive reference.
pub fn recursive(base: Plan, step: impl Fn(Plan) -> Plan) -> Plan {
    recursion(base, step, false)
}

/// WITH RECURSIVE … UNION, likewise.
pub fn recursive_set(base: Plan, step: impl Fn(Plan) -> Plan) -> Plan {
    recursion(base, step, true)
}

fn recursion(base: Plan, step: impl Fn(Plan) -> Plan, is_set: bool) -> Plan {
    let columns: Schema = base.schema().into_iter().map(Column::of_recursion).collect();
    let width = columns.len();
    let itself = Plan::Scan(Scan {
        source: ITSELF,
        attributes: (0..width).collect(),
        columns,
        key: None,
        version: Version::New,
        policy: None,
    });
    let plan = recurse(base, step(itself), &bigint(), is_set).expect("a linear step");
    let columns: Vec<String> = (0..width).map(|it| format!("#{it}")).collect();
    project(plan, &columns.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Window functions, such as `rank() OVER (PARTITION BY #0 ORDER BY #1)`, over the partitions of
/// these columns, and a condition on the output.
pub fn window(input: Plan, partition: &[usize], calls: &[&str], filter: Option<&str>) -> Plan {
    let schema = input.schema();
    let calls: Vec<(Scalar, String)> =
        calls.iter().map(|it| (scalar(it, &schema), (*it).to_owned())).collect();
    let partition = partition.to_vec();
    let ranking = ranking(&calls, &schema);
    let plan = Plan::Window { input: Box::new(input), partition, calls, ranking, filter: None };
    let condition = filter.map(|it| scalar(it, &plan.schema()));
    let Plan::Window { input, partition, calls, ranking, .. } = plan else {
        unreachable!("just made")
    };
    Plan::Window { input, partition, calls, ranking, filter: condition }
}

/// The order of calls such as `rank() OVER (PARTITION BY #0 ORDER BY #1)`.
fn ranking(calls: &[(Scalar, String)], schema: &Schema) -> Option<Ranking> {
    let order = |text: &str| Some(text.split_once("ORDER BY ")?.1.strip_suffix(')')?.to_owned());
    let first = order(&calls.first()?.1)?;
    let has_ties = calls.iter().map(|(_, text)| {
        let has_ties = match text.split_once('(')?.0 {
            "rank" => true,
            "row_number" => false,
            _ => return None,
        };
        (order(text)? == first).then_some(has_ties)
    });
    let has_ties = has_ties.collect::<Option<Vec<bool>>>()?;
    let order = Scalar { segments: cut(&first), ..Scalar::column(0, &schema[0]) };
    Some(Ranking { order, has_ties })
}

fn has_images(argument: &Scalar) -> bool {
    !(argument.ty.exact || argument.scale.is_some())
}

fn aggregate_call(sql: &str, schema: &Schema) -> AggregateCall {
    let Expression::Call(call) = expression(sql) else { panic!("{sql} is not a call") };
    let (head, filter) = match sql.split_once(" FILTER (WHERE ") {
        Some((head, filter)) => (head, filter.strip_suffix(')')),
        None => (sql, None),
    };
    let head = head.replacen("(DISTINCT ", "(", 1);
    let argument = || {
        let (_, argument) = head.split_once('(').expect("a call has parentheses");
        scalar(argument.strip_suffix(')').expect("a call has parentheses"), schema)
    };
    let function = match call.name.as_str() {
        "count" if call.arguments.is_empty() => AggregateFunction::CountRows,
        "count" => AggregateFunction::Count { argument: argument() },
        "sum" => AggregateFunction::Sum { argument: argument() },
        "avg" => AggregateFunction::Average { argument: argument() },
        "min" => AggregateFunction::Extremum { argument: argument(), end: End::Least },
        "max" => AggregateFunction::Extremum { argument: argument(), end: End::Greatest },
        "bool_and" => AggregateFunction::Decided { argument: argument(), by: false },
        "bool_or" => AggregateFunction::Decided { argument: argument(), by: true },
        _ => AggregateFunction::Rescan,
    };
    let is_the_same =
        matches!(function, AggregateFunction::Extremum { .. } | AggregateFunction::Decided { .. });
    let function = match call.is_distinct && !is_the_same {
        // What is stored of equal values with several images is left open.
        true if !has_images(&argument()) => AggregateFunction::Distinct(Box::new(function)),
        true => AggregateFunction::Rescan,
        false => function,
    };
    let filter = filter.map(|it| scalar(it, schema));
    AggregateCall { call: scalar(sql, schema), function, filter, name: call.name }
}

/// The scalar that prints as `sql`, with its type inferred.
pub fn scalar(sql: &str, schema: &Schema) -> Scalar {
    let Column { ty, nullable, scale, .. } = infer(&expression(sql), schema);
    Scalar { segments: cut(sql), ty, nullable, scale }
}

fn cut(sql: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut copied = 0;
    for (start, token) in tokens(sql) {
        let Token::Hole(position) = token else { continue };
        if copied < start {
            segments.push(Segment::Text(sql[copied..start].to_owned()));
        }
        segments.push(Segment::Column(position));
        copied = start + format!("#{position}").len();
    }
    if copied < sql.len() {
        segments.push(Segment::Text(sql[copied..].to_owned()));
    }
    segments
}

fn infer(expression: &Expression, schema: &Schema) -> Column {
    let column =
        |ty: Type, nullable: bool| Column { name: String::new(), ty, nullable, scale: None };
    match expression {
        Expression::Hole(position) => schema[*position].clone(),
        Expression::Literal(Value::Int(_)) => column(integer(), false),
        Expression::Literal(Value::Numeric(_)) => column(numeric(), false),
        Expression::Literal(Value::Bool(_)) => column(Type::boolean(), false),
        Expression::Literal(Value::Null) => column(text(), true),
        Expression::Literal(_) => column(text(), false),
        Expression::Negated(it) => infer(it, schema),
        Expression::Not(it) => column(Type::boolean(), infer(it, schema).nullable),
        Expression::IsNull(_) => column(Type::boolean(), false),
        Expression::In(..) => column(Type::boolean(), true),
        Expression::Binary(operator, left, right) => {
            let (left, right) = (infer(left, schema), infer(right, schema));
            let nullable = left.nullable || right.nullable;
            match *operator {
                "+" | "-" | "*" | "/" if left.ty.oid == 1700 => column(numeric(), nullable),
                "+" | "-" | "*" | "/" => column(right.ty, nullable),
                _ => column(Type::boolean(), nullable),
            }
        }
        Expression::Case { arms, .. } => column(infer(&arms[0].1, schema).ty, true),
        Expression::Cast(it, ty) => {
            let ty = if ty == "numeric" { numeric() } else { bigint() };
            column(ty, infer(it, schema).nullable)
        }
        Expression::Call(call) => infer_call(call, schema),
        Expression::Over(over) => Column { nullable: true, ..infer_call(&over.call, schema) },
        Expression::Column(..)
        | Expression::Record(_)
        | Expression::Exists(_)
        | Expression::Scalar(_) => {
            panic!("{expression:?} in a plan")
        }
    }
}

fn infer_call(call: &Call, schema: &Schema) -> Column {
    let arguments: Vec<Column> = call.arguments.iter().map(|it| infer(it, schema)).collect();
    let column =
        |ty: Type, nullable: bool| Column { name: String::new(), ty, nullable, scale: None };
    match call.name.as_str() {
        "count" | "row_number" | "rank" | "dense_rank" => column(bigint(), false),
        "sum" if arguments[0].ty.oid == 23 => column(bigint(), true),
        "sum" | "avg" => column(numeric(), true),
        "min" | "max" | "lag" | "lead" => Column { nullable: true, ..arguments[0].clone() },
        "coalesce" => column(arguments[0].ty.clone(), arguments.iter().all(|it| it.nullable)),
        _ => column(Type::boolean(), true),
    }
}
