//! What happened to the sources between two refreshes.

use std::collections::BTreeMap;

use crate::{
    model::ZSet,
    plan::{Source, Version},
};

/// The two contents of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// At the last refresh; all columns of the source.
    pub old: ZSet,
    /// At this refresh.
    pub new: ZSet,
}

impl Content {
    /// The content at `version`.
    pub fn at(&self, version: Version) -> ZSet {
        match version {
            Version::Old => self.old.clone(),
            Version::New => self.new.clone(),
            Version::Delta => self.new.plus(&self.old.negated()),
        }
    }

    /// Whether anything changed.
    pub fn is_changed(&self) -> bool {
        self.old != self.new
    }
}

/// The contents of all sources, by [`key`](History::key).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(BTreeMap<String, Content>);

impl History {
    /// The name under which a source stands.
    fn key(source: &Source) -> String {
        match source {
            Source::Table { oid, .. } => format!("table {oid}"),
            Source::Stage(stage) => format!("stage {stage}"),
        }
    }

    /// Sets the contents of `source`.
    pub fn set(&mut self, source: &Source, content: Content) {
        self.0.insert(Self::key(source), content);
    }

    /// The contents of `source`.
    pub fn content(&self, source: &Source) -> &Content {
        &self.0[&Self::key(source)]
    }

    /// The next interval, in which nothing happened yet.
    #[must_use]
    pub fn settled(&self) -> Self {
        let settle = |it: &Content| Content { old: it.new.clone(), new: it.new.clone() };
        Self(self.0.iter().map(|(key, content)| (key.clone(), settle(content))).collect())
    }
}
