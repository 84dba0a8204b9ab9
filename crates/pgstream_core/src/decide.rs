//! Which stream tables are due at a moment, which of them belong together, and when to ask again.
//!
//! A stream table with a duration runs once in each period. It is looked at when its period has
//! passed even if nothing is known to have changed, so that its data timestamp moves on; and when
//! it has rested longer than that, the first commit that changed something makes it due at once.
//!
//! Stream tables that are connected, by reading each other or by being read by the same ones, form
//! a component. What is due in a component at one moment is a unit: it is refreshed at one snapshot
//! and committed at once, so nobody ever sees a diamond half refreshed. For that, tables of a
//! component that have the same schedule keep one clock (they are a group: if one is due, all are),
//! and a table brings along the CALCULATED ones that it reads.
//!
//! What fails is left behind, and its readers go on with what it holds; but those that see a source of
//! it on another way as well, the tip of a diamond, would be torn: they wait until it is tried again.
//!
//! The price is that a unit is as slow as all its tables together. So a group that takes longer
//! than the shortest period of its unit, and has a longer one itself, runs in a unit of its own, if no table
//! of one unit sees a source through the other and on another way.
//!
//! Components that read a common table or view form a *family*. Its tables keep one clock too, and
//! what is due in it at one moment is a unit as long as that is quick: then nobody sees one table with
//! a change and the other without it. What is slow, has failed, or was in somebody's way runs side by
//! side, each component in a unit of its own; so do all components of a family that is large.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    dag::Dag,
    schedule::{Effective, Micros, SECOND, Schedule},
    status::Status,
};

/// How often a stream table runs whose schedule is calculated and that nobody reads.
const UNREAD_SECONDS: i64 = 60;
/// The longest wait after a failure, in seconds.
const LONGEST_BACK_OFF: i64 = 60;
/// The most tables of a unit.
pub const MOST_TABLES: usize = 1024;
/// The most tables of a family: a unit holds the locks of all its tables.
pub const MOST_RELATIVES: usize = 64;
/// The components of a family are refreshed together if that takes at most this part of the shortest
/// period.
const QUICK: i64 = 4;
/// The longest wait after somebody else was in the way, in seconds.
const LONGEST_DETOUR: i64 = 8;

/// What the catalog says about a stream table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its identity.
    pub id: i64,
    /// What the user chose.
    pub schedule: Schedule,
    /// Since when that is so; a cron pattern does not fire for times before.
    pub scheduled_at: Micros,
    /// Where it stands.
    pub status: Status,
    /// The failures since the last success.
    pub consecutive_errors: u32,
    /// The stream tables that it reads.
    pub reads: Vec<i64>,
    /// All relations that it reads.
    pub sources: Vec<u32>,
}

/// What has happened to a stream table so far.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// When it last ran because there may have been changes.
    pub ran_at: Micros,
    /// When it was last looked at, with or without changes.
    pub checked_at: Micros,
    /// Whether something that it reads was committed since then.
    pub may_have_changed: bool,
    /// Whether it is certain that a refresh would find nothing to do.
    pub is_settled: bool,
    /// How often in a row somebody else was in the way of a refresh.
    pub detours: u32,
    /// How long its last refresh took that had something to do; or the one that runs, if that is longer.
    pub took: Micros,
    /// Whether it is being refreshed.
    pub is_running: bool,
}

/// Stream tables to be refreshed together, at most [`MOST_TABLES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Each after those that it reads.
    pub tables: Vec<i64>,
    /// Since when the first of them is due.
    pub since: Micros,
}

/// What to do now and when to come back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What to refresh, the longest due first.
    pub units: Vec<Unit>,
    /// Tables that are due, and known to be up to date.
    pub idle: Vec<i64>,
    /// When the next one becomes due without any commit.
    pub wake_at: Option<Micros>,
    /// Tables that a commit of what they read would make due before that.
    pub wake_on_commit: Vec<i64>,
}

/// All stream tables of a database, with what follows from the catalog alone.
#[derive(Debug, Default)]
pub struct Schedules {
    /// Each after those that it reads.
    tables: Vec<Table>,
    /// For each table those that it reads.
    reads: Vec<Vec<usize>>,
    effective: Vec<Effective>,
    component: Vec<usize>,
    family: Vec<usize>,
    /// For each table those that keep the same clock, itself among them.
    groups: Vec<Vec<usize>>,
    /// The number of each table's group.
    group: Vec<usize>,
    /// The last answer of a cron pattern: asked for the first fire time after a moment.
    fires: Vec<Cell<(Micros, Option<Micros>)>>,
}

impl Schedules {
    /// For the stream tables that the catalog has.
    pub fn new(tables: Vec<Table>) -> Self {
        let tables = sorted(tables);
        let index: BTreeMap<i64, usize> =
            tables.iter().enumerate().map(|(index, it)| (it.id, index)).collect();
        let reads: Vec<Vec<usize>> = tables
            .iter()
            .map(|it| it.reads.iter().filter_map(|id| index.get(id).copied()).collect())
            .collect();
        let effective = effective_schedules(&tables, &reads);
        let component = components(&reads);
        let family = families(&tables, &component);
        let (group, groups) = groups(&family, &effective);
        let fires = vec![Cell::new((Micros::MIN, None)); tables.len()];
        Self { tables, reads, effective, component, family, groups, group, fires }
    }

    /// The stream tables, each after those that it reads.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The schedule of a table by its position, with CALCULATED replaced by what its readers need.
    pub fn effective(&self, position: usize) -> &Effective {
        &self.effective[position]
    }

    /// Decides at the time `now`; `states` are those of [`Self::tables`], in their order.
    pub fn decide(&self, states: &[State], now: Micros) -> Decision {
        let mut decision = Decision::default();
        let due_at: Vec<Option<Micros>> =
            (0..self.tables.len()).map(|it| self.due_at(it, &states[it], now)).collect();
        let is_due =
            |it: &usize| due_at[*it].is_some_and(|moment| moment <= now) && !states[*it].is_running;
        let is_left_behind = |it: &usize| self.is_left_behind(*it, &states[*it]);
        let left_behind: Vec<usize> = (0..self.tables.len()).filter(is_left_behind).collect();
        let resting = left_behind.iter().copied().filter(|it| !is_due(it));
        let held_up = self.torn_by(resting.collect());
        let due: Vec<usize> =
            (0..self.tables.len()).filter(is_due).filter(|it| !held_up.contains(it)).collect();
        let mut decided: BTreeSet<usize> = BTreeSet::new();
        for mut unit in self.units(&self.closure(&due, &held_up, states), states) {
            // What other units try again may fail once more.
            let torn = self.torn_by(self.connected(&left_behind, &unit));
            unit.retain(|it| !torn.contains(it));
            let since = unit.iter().filter_map(|it| due_at[*it]).min().unwrap_or(now);
            // The rest of one that was too large may not be due any more.
            let is_due = unit.iter().any(|it| due.binary_search(it).is_ok());
            if !is_due {
                continue;
            }
            if unit.iter().any(|it| states[*it].is_running) {
                // It may take too long to be waited for.
                decision.wake_at = Some(now.saturating_add(SECOND));
                continue;
            }
            decided.extend(&unit);
            let tables = unit.iter().map(|it| self.tables[*it].id);
            if unit.iter().all(|it| states[*it].is_settled) {
                decision.idle.extend(tables);
            } else {
                decision.units.push(Unit { tables: tables.collect(), since });
            }
        }
        decision.units.sort_by_key(|it| it.since);
        for (it, moment) in due_at.iter().enumerate() {
            let Some(moment) = moment.filter(|moment| *moment > now) else { continue };
            if states[it].is_running || decided.contains(&it) {
                continue;
            }
            decision.wake_at = Some(decision.wake_at.map_or(moment, |it| it.min(moment)));
            let changed = State { may_have_changed: true, ..states[it] };
            if self.due_at(it, &changed, now).is_some_and(|it| it <= now) {
                decision.wake_on_commit.push(self.tables[it].id);
            }
        }
        decision
    }

    /// The moment from which a table is due. `None` when it rests until somebody does something.
    fn due_at(&self, position: usize, state: &State, now: Micros) -> Option<Micros> {
        let table = &self.tables[position];
        if !table.status.is_scheduled() {
            return None;
        }
        // A clock that was set back must not stop anything.
        let checked_at = state.checked_at.min(now);
        if let Some(pause) = pause(table, state) {
            return Some(checked_at.saturating_add(pause * SECOND));
        }
        let effective = &self.effective[position];
        let base = if state.may_have_changed { state.ran_at.min(now) } else { checked_at };
        let period =
            effective.every.map(|seconds| base.saturating_add(seconds.saturating_mul(SECOND)));
        let fire = self.next_fire(position, checked_at.max(table.scheduled_at.min(now)));
        [period, fire].into_iter().flatten().min()
    }

    /// The first moment after `since` at which a pattern fires.
    fn next_fire(&self, position: usize, since: Micros) -> Option<Micros> {
        let memo = &self.fires[position];
        if self.effective[position].crons.is_empty() {
            return None;
        }
        if memo.get().0 != since {
            memo.set((since, self.effective[position].next_fire(since)));
        }
        memo.get().1
    }

    /// `due` and what has to be refreshed with it.
    fn closure(
        &self,
        due: &[usize],
        held_up: &BTreeSet<usize>,
        states: &[State],
    ) -> BTreeSet<usize> {
        let mut together: BTreeSet<usize> = due.iter().copied().collect();
        let mut open = due.to_vec();
        while let Some(next) = open.pop() {
            let clock = &self.groups[self.group[next]];
            let is_calculated = |it: &&usize| self.tables[**it].schedule == Schedule::Calculated;
            for it in clock.iter().chain(self.reads[next].iter().filter(is_calculated)) {
                let table = &self.tables[*it];
                let may_run = table.status.is_scheduled()
                    && pause(table, &states[*it]).is_none()
                    && !held_up.contains(it);
                if may_run && together.insert(*it) {
                    open.push(*it);
                }
            }
        }
        together
    }

    /// Which of the stream tables would be torn if these are left behind while others go on.
    pub fn torn(&self, left_behind: &BTreeSet<i64>) -> BTreeSet<i64> {
        let is_behind = |it: &usize| left_behind.contains(&self.tables[*it].id);
        let behind = (0..self.tables.len()).filter(is_behind).collect();
        self.torn_by(behind).into_iter().map(|it| self.tables[it].id).collect()
    }

    /// Whether it is going to be tried again.
    fn is_left_behind(&self, position: usize, state: &State) -> bool {
        let table = &self.tables[position];
        table.status.is_scheduled() && pause(table, state).is_some()
    }

    /// Those of `some` that the tables of a unit are connected with and that are not in it.
    fn connected(&self, some: &[usize], unit: &[usize]) -> Vec<usize> {
        let components: BTreeSet<usize> = unit.iter().map(|it| self.component[*it]).collect();
        let is_connected =
            |it: &usize| components.contains(&self.component[*it]) && !unit.contains(it);
        some.iter().copied().filter(is_connected).collect()
    }

    /// The tables that read one which is left behind, and see a source of it on another way too. They are
    /// left behind themselves then.
    fn torn_by(&self, mut left_behind: Vec<usize>) -> BTreeSet<usize> {
        let mut torn = BTreeSet::new();
        while let Some(behind) = left_behind.pop() {
            let more = self.torn_by_part(&[behind]);
            left_behind.extend(more.into_iter().filter(|it| torn.insert(*it)));
        }
        torn
    }

    /// The same where these tables of one component, which are refreshed together, are left behind together.
    fn torn_by_part(&self, behind: &[usize]) -> Vec<usize> {
        let mut is_behind: BTreeSet<usize> = behind.iter().copied().collect();
        let mut sources: BTreeSet<u32> = BTreeSet::new();
        let (mut open, mut seen) = (behind.to_vec(), is_behind.clone());
        while let Some(next) = open.pop() {
            sources.extend(&self.tables[next].sources);
            open.extend(self.reads[next].iter().filter(|it| seen.insert(**it)));
        }
        let (mut is_ahead, mut torn) = (BTreeSet::new(), Vec::new());
        for (it, table) in self.tables.iter().enumerate() {
            if self.component[it] != self.component[behind[0]] || behind.contains(&it) {
                continue;
            }
            let reads = |some: &BTreeSet<usize>| self.reads[it].iter().any(|it| some.contains(it));
            let sees_new = table.sources.iter().any(|it| sources.contains(it)) || reads(&is_ahead);
            if reads(&is_behind) {
                is_behind.insert(it);
                torn.extend(sees_new.then_some(it));
            } else if sees_new {
                is_ahead.insert(it);
            }
        }
        torn
    }

    /// Takes tables apart into those that are refreshed together.
    fn units(&self, together: &BTreeSet<usize>, states: &[State]) -> Vec<Vec<usize>> {
        let mut families: BTreeMap<usize, BTreeMap<usize, Vec<usize>>> = BTreeMap::new();
        for it in together {
            let family = families.entry(self.family[*it]).or_default();
            family.entry(self.component[*it]).or_default().push(*it);
        }
        let mut units = Vec::new();
        for family in families.into_values() {
            let mut parts = Vec::new();
            for component in family.into_values() {
                let (rest, slow) = self.without_slow_groups(component, states);
                parts.push(rest);
                units.extend(slow);
            }
            units.extend(self.joined(parts, states));
        }
        units.iter().flat_map(|it| it.chunks(MOST_TABLES)).map(<[usize]>::to_vec).collect()
    }

    /// Takes those groups out of tables of a component that the others should not wait for: unless one of
    /// them would be torn, since it sees one part as it is and the other as it was.
    fn without_slow_groups(
        &self,
        component: Vec<usize>,
        states: &[State],
    ) -> (Vec<usize>, Vec<Vec<usize>>) {
        let shortest = self.shortest_period(&component);
        let mut took: BTreeMap<usize, Micros> = BTreeMap::new();
        for it in &component {
            *took.entry(self.group[*it]).or_default() += states[*it].took;
        }
        let is_slow = |it: &usize| {
            let every = self.effective[*it].every;
            shortest.is_some_and(|shortest| {
                every != Some(shortest) && took[&self.group[*it]] > shortest * SECOND
            })
        };
        let (slow, rest): (Vec<usize>, Vec<usize>) = component.into_iter().partition(is_slow);
        let mut apart: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for it in slow {
            apart.entry(self.group[it]).or_default().push(it);
        }
        // There are quick ones: those with the shortest period.
        let mut parts: Vec<Vec<usize>> = std::iter::once(rest).chain(apart.into_values()).collect();
        while let Some((one, other)) = self.tearing(&parts) {
            let more = parts.remove(one.max(other));
            let part = &mut parts[one.min(other)];
            part.extend(more);
            part.sort_unstable();
        }
        let slow = parts.split_off(1);
        (parts.remove(0), slow)
    }

    /// Two of the parts one of which reads the other and would be torn.
    fn tearing(&self, parts: &[Vec<usize>]) -> Option<(usize, usize)> {
        if parts.len() == 1 {
            return None;
        }
        parts.iter().enumerate().find_map(|(part, tables)| {
            let torn = self.torn_by_part(tables);
            let other = parts.iter().position(|it| it.iter().any(|it| torn.contains(it)))?;
            Some((part, other))
        })
    }

    /// Joins parts of a family, of a component each, if nobody has to wait long for the others.
    fn joined(&self, parts: Vec<Vec<usize>>, states: &[State]) -> Vec<Vec<usize>> {
        let is_ready = |it: &usize| pause(&self.tables[*it], &states[*it]).is_none();
        // One that runs is waited for: then both are refreshed together.
        let has_work = |part: &[usize]| {
            part.iter().any(|it| !states[*it].is_settled || states[*it].is_running)
        };
        let (ready, mut units): (Vec<_>, Vec<_>) =
            parts.into_iter().partition(|part| part.iter().all(is_ready) && has_work(part));
        let mut unit = ready.concat();
        let took: Micros = unit.iter().map(|it| states[*it].took).sum();
        let shortest = self.shortest_period(&unit).unwrap_or(UNREAD_SECONDS);
        if took <= shortest * SECOND / QUICK {
            unit.sort_unstable();
            units.push(unit);
        } else {
            units.extend(ready);
        }
        units
    }

    /// In seconds.
    fn shortest_period(&self, tables: &[usize]) -> Option<i64> {
        tables.iter().filter_map(|it| self.effective[*it].every).min()
    }
}

/// How many seconds to wait after a failure, or after somebody else was in the way.
fn pause(table: &Table, state: &State) -> Option<i64> {
    let doubled = |times: u32, longest: i64| (1i64 << (times - 1).min(16)).min(longest);
    match (table.consecutive_errors, state.detours) {
        (0, 0) => None,
        (0, detours) => Some(doubled(detours, LONGEST_DETOUR)),
        (errors, _) => Some(doubled(errors, LONGEST_BACK_OFF)),
    }
}

/// Sources first. Creation excludes cycles; should there be one all the same, ids decide.
fn sorted(mut tables: Vec<Table>) -> Vec<Table> {
    let mut dag = Dag::new();
    for table in &tables {
        dag.add(table.id);
        for source in &table.reads {
            dag.add_edge(table.id, *source);
        }
    }
    let order = dag.order().unwrap_or_default();
    let rank: BTreeMap<i64, usize> =
        order.into_iter().enumerate().map(|(rank, id)| (id, rank)).collect();
    tables.sort_by_key(|it| (rank.get(&it.id).copied(), it.id));
    tables
}

/// The schedule of each table, with CALCULATED replaced by what its readers need.
fn effective_schedules(tables: &[Table], reads: &[Vec<usize>]) -> Vec<Effective> {
    let mut effective: Vec<Effective> =
        tables.iter().map(|it| Effective::from(&it.schedule)).collect();
    for reader in (0..tables.len()).rev() {
        if effective[reader].is_empty() {
            effective[reader] = Effective { every: Some(UNREAD_SECONDS), crons: Vec::new() };
        }
        let needs = effective[reader].clone();
        for source in &reads[reader] {
            if tables[*source].schedule == Schedule::Calculated {
                effective[*source].join(&needs);
            }
        }
    }
    effective
}

/// For each table the first one of those that it is connected with.
fn components(reads: &[Vec<usize>]) -> Vec<usize> {
    let mut parent: Vec<usize> = (0..reads.len()).collect();
    for (reader, sources) in reads.iter().enumerate() {
        for source in sources {
            unite(&mut parent, reader, *source);
        }
    }
    (0..reads.len()).map(|it| root(&mut parent, it)).collect()
}

/// For each table the first one of its family; of its component if the family is large.
fn families(tables: &[Table], component: &[usize]) -> Vec<usize> {
    let mut parent = component.to_vec();
    let mut readers: BTreeMap<u32, usize> = BTreeMap::new();
    for (reader, table) in tables.iter().enumerate() {
        for source in &table.sources {
            let other = *readers.entry(*source).or_insert(reader);
            unite(&mut parent, reader, other);
        }
    }
    let family: Vec<usize> = (0..tables.len()).map(|it| root(&mut parent, it)).collect();
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    family.iter().for_each(|it| *sizes.entry(*it).or_default() += 1);
    let either = family.iter().zip(component);
    either.map(|(it, alone)| if sizes[it] > MOST_RELATIVES { *alone } else { *it }).collect()
}

fn unite(parent: &mut [usize], left: usize, right: usize) {
    let (left, right) = (root(parent, left), root(parent, right));
    parent[left.max(right)] = left.min(right);
}

/// The representative of what `it` is connected with so far; shortens the way to it.
fn root(parent: &mut [usize], mut it: usize) -> usize {
    while parent[it] != it {
        parent[it] = parent[parent[it]];
        it = parent[it];
    }
    it
}

/// The group of each table, and the tables of each group.
fn groups(family: &[usize], effective: &[Effective]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut group = vec![0; family.len()];
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known: BTreeMap<(usize, Option<i64>), Vec<usize>> = BTreeMap::new();
    for (table, family) in family.iter().enumerate() {
        let similar = known.entry((*family, effective[table].every)).or_default();
        let found = similar.iter().find(|it| effective[groups[**it][0]] == effective[table]);
        group[table] = found.copied().unwrap_or(groups.len());
        match found {
            Some(found) => groups[*found].push(table),
            None => {
                similar.push(groups.len());
                groups.push(vec![table]);
            }
        }
    }
    (group, groups)
}

#[cfg(test)]
mod tests;
