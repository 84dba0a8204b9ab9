//! The settings `pg_stream.*`: one table that defines, documents and reads them.

use std::ffi::{CStr, CString};

use crate::fault::{Action, Step};
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

/// When user triggers of a stream table fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum UserTriggers {
    #[name = c"auto"]
    Auto,
    #[name = c"on"]
    On,
    #[name = c"off"]
    Off,
}

/// How changes of sources are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum CdcMode {
    #[name = c"trigger"]
    Trigger,
    #[name = c"auto"]
    Auto,
    #[name = c"wal"]
    Wal,
}

const fn c_text(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("the table appends the only NUL"),
    }
}

/// A row is: variable, name and getter, type, default, how it is defined with its range, meaning.
macro_rules! settings {
    ($($var:ident $name:ident: $ty:ty = $default:expr, $define:ident($($bound:expr),*), $doc:literal;)*) => {
        $(
            static $var: GucSetting<$ty> = GucSetting::<$ty>::new($default);

            #[doc = $doc]
            pub fn $name() -> $ty {
                $var.get()
            }
        )*

        /// Makes the settings known to PostgreSQL.
        pub fn define() {
            $(
                GucRegistry::$define(
                    c_text(concat!("pg_stream.", stringify!($name), "\0")),
                    c_text(concat!($doc, "\0")),
                    c"",
                    &$var,
                    $($bound,)*
                    GucContext::Suset,
                    GucFlags::empty(),
                );
            )*
        }
    };
}

settings! {
    ENABLED enabled: bool = true, define_bool_guc(),
        "Whether the scheduler refreshes stream tables.";
    SCHEDULER_INTERVAL scheduler_interval_ms: i32 = 1000, define_int_guc(100, 60_000),
        "The shortest time between two passes of the scheduler, in milliseconds.";
    MIN_SCHEDULE min_schedule_seconds: i32 = 60, define_int_guc(1, 86_400),
        "The shortest duration that a schedule may have, in seconds; patterns are not held to it.";
    MAX_ERRORS max_consecutive_errors: i32 = 3, define_int_guc(1, 100),
        "After so many failures in a row that are its own fault a stream table is suspended.";
    BUFFER_SCHEMA change_buffer_schema: Option<CString> = Some(c"pgstream_changes"), define_string_guc(),
        "The schema of the change buffers.";
    MAX_REFRESHES max_concurrent_refreshes: i32 = 4, define_int_guc(1, 32),
        "How many stream tables are refreshed at the same time.";
    MAX_CHANGE_RATIO differential_max_change_ratio: f64 = 0.15, define_float_guc(0.0, 1.0),
        "The changed part of the sources above which a refresh computes the query anew, from 10000 changes on; 0 means never.";
    CLEANUP_TRUNCATE cleanup_use_truncate: bool = true, define_bool_guc(),
        "Whether drained change buffers may be truncated.";
    MERGE_WORK_MEM merge_work_mem_mb: i32 = 64, define_int_guc(1, 65_536),
        "The work_mem of a refresh, in megabytes.";
    USER_TRIGGERS user_triggers: UserTriggers = UserTriggers::Auto, define_enum_guc(),
        "Whether a refresh fires the user triggers of a stream table.";
    BLOCK_SOURCE_DDL block_source_ddl: bool = false, define_bool_guc(),
        "Whether DDL on sources that would cause a rebuild is refused.";
    CDC_MODE cdc_mode: CdcMode = CdcMode::Trigger, define_enum_guc(),
        "How changes of sources are captured: by triggers, or from the write-ahead log where that is possible (auto, and wal, which warns where it is not).";
    WAL_TIMEOUT wal_transition_timeout: i32 = 300, define_int_guc(10, 3600),
        "How long to try to let a source change over to capture from the write-ahead log, in seconds.";
    HISTORY_RETENTION history_retention_days: i32 = 30, define_int_guc(1, 36_500),
        "How long finished refreshes are remembered, in days.";
    BUFFER_WARNING buffer_warning_mb: i32 = 256, define_int_guc(0, 1_048_576),
        "Unconsumed changes of a source beyond this size are warned of, in megabytes; 0 means never.";
    BUFFER_LIMIT buffer_limit_mb: i32 = 1024, define_int_guc(0, 1_048_576),
        "Unconsumed changes of a source beyond this size are dropped and what reads it is rebuilt, in megabytes; 0 means never.";
    INJECT_FAULT inject_fault: Step = Step::None, define_enum_guc(),
        "For tests: the step at which to stop.";
    INJECT_FAULT_SKIP inject_fault_skip: i32 = 0, define_int_guc(0, i32::MAX),
        "For tests: how many such steps of a transaction to pass over.";
    INJECT_FAULT_ACTION inject_fault_action: Action = Action::Error, define_enum_guc(),
        "For tests: what to do at the step.";
}
