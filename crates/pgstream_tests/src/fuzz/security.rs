//! Random row-level security: the stream tables belong to one role, views to it or to another, and
//! policies hide rows of the tables from both.

use super::{
    case::View,
    expression::bool_expression,
    random::Random,
    schema::{OTHER_SCHEMA, Table},
};

/// Owns the stream tables, and reads their queries.
pub const READER: &str = "pgs_fuzz_reader";

/// Owns views.
const VIEWER: &str = "pgs_fuzz_viewer";

/// What keeps rows from the readers of a case.
#[derive(Clone, Debug)]
pub struct Security {
    /// Statements after those that make the tables and views.
    pub statements: Vec<String>,
}

/// How the text of a change of policies begins.
pub const CHANGE: &str = "ALTER POLICY";

impl Security {
    pub fn random(tables: &[Table], views: &[View], random: &mut Random) -> Self {
        let mut statements = Vec::new();
        for table in tables {
            let name = table.qualified();
            let columns = match table.without_key() {
                columns if !columns.is_empty() && random.chance(25) => format!(" ({columns})"),
                _ => String::new(),
            };
            statements.push(format!("GRANT SELECT{columns} ON {name} TO {READER}, {VIEWER}"));
            if random.chance(30) {
                continue;
            }
            statements.push(format!("ALTER TABLE {name} ENABLE ROW LEVEL SECURITY"));
            for number in 0..random.between(0, 3) {
                let kind = *random.pick(&["PERMISSIVE", "PERMISSIVE", "RESTRICTIVE"]);
                let roles = [READER, VIEWER, "PUBLIC", &format!("{READER}, {VIEWER}")];
                let roles = *random.pick(&roles);
                let using = condition(table, random);
                statements.push(format!(
                    "CREATE POLICY p{number} ON {name} AS {kind} FOR SELECT TO {roles} USING ({using})"
                ));
            }
        }
        for view in views {
            let owner = *random.pick(&[READER, VIEWER, VIEWER, "CURRENT_USER"]);
            statements.push(format!("ALTER VIEW {} OWNER TO {owner}", view.name));
            statements.push(format!("GRANT SELECT ON {} TO {READER}", view.name));
            if random.chance(30) {
                let option = "security_invoker = true";
                statements.push(format!("ALTER VIEW {} SET ({option})", view.name));
            }
        }
        Self { statements }
    }

    /// The roles with their rights in the schemas of a case.
    pub fn roles(schema: &str) -> Vec<String> {
        let create = |role: &str| {
            format!(
                "DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
            )
        };
        let grant = |schema| format!("GRANT ALL ON SCHEMA {schema} TO {READER}, {VIEWER}");
        vec![create(READER), create(VIEWER), grant(schema), grant(OTHER_SCHEMA)]
    }

    /// A change of one of the policies, if there are any.
    pub fn change(&self, tables: &[Table], random: &mut Random) -> Option<String> {
        let table = random.pick(tables);
        let policy = format!("CREATE POLICY p0 ON {} ", table.qualified());
        let has_policy = self.statements.iter().any(|it| it.starts_with(&policy));
        has_policy.then(|| {
            format!("{CHANGE} p0 ON {} USING ({})", table.qualified(), condition(table, random))
        })
    }
}

/// Which rows a policy lets through.
fn condition(table: &Table, random: &mut Random) -> String {
    let condition = bool_expression(&table.scope(), 1, random);
    match random.below(6) {
        0 => "true".to_owned(),
        1 => format!("current_user = '{READER}' OR ({condition})"),
        2 => format!("({condition}) IS NOT FALSE"),
        _ => condition,
    }
}
