//! Settings that a query cannot follow, so that their values cannot make its refreshes fail: what they
//! name (a locale, a time zone, a text search configuration) may not be there for ever, or on every
//! server. What is not known to be free of a setting is taken to follow it.

use std::collections::HashSet;
use std::ffi::CStr;

use super::Inventory;
use crate::pg::types::{self, Oid, Volatility};

/// Functions that write or read numbers or times by a pattern.
const FORMATTING: [&str; 4] = ["to_char", "to_number", "to_date", "to_timestamp"];

impl Inventory {
    /// Of those whose values can be lost.
    pub fn ignored_settings(&self) -> Vec<&'static CStr> {
        let of_values = [&self.types, &self.read, &self.written, &self.fields];
        let types: HashSet<Oid> = of_values.into_iter().flat_map(|it| self.parts(it)).collect();
        let is_opaque = |function: &Oid| !types::is_builtin(*function);
        if self.constructs
            || self.depends_on_moment()
            || self.functions.iter().any(is_opaque)
            || types.iter().any(|it| !types::is_builtin(*it) && !types::is_row(*it))
        {
            return Vec::new();
        }
        let names: Vec<String> = self
            .functions
            .iter()
            .filter(|it| types::volatility(**it) != Volatility::Immutable)
            .map(|it| types::plain_function_name(*it))
            .collect();
        let has_paths = names.iter().any(|it| it.starts_with("jsonb_path"));
        let formats = has_paths || names.iter().any(|it| FORMATTING.contains(&it.as_str()));
        let has_times = has_paths || types.iter().any(|it| types::is_date_or_time(*it));
        let has_money = formats || types.iter().any(|it| types::is_money(*it));
        [
            (c"TimeZone", has_times),
            (c"timezone_abbreviations", has_times),
            (c"lc_monetary", has_money),
            (c"lc_numeric", formats),
            (c"lc_time", formats),
            (c"default_text_search_config", self.uses_default_search()),
        ]
        .into_iter()
        .filter(|(_, is_followed)| !is_followed)
        .map(|(name, _)| name)
        .collect()
    }
}
