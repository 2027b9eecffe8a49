//! Who still has a staged volume, before it is unstaged (design rule 4).
//!
//! Nothing here asks a file system: mount tables, links and numbers of `/proc` say it all, and none of them waits for a
//! server that may be dead. Who cannot be looked at (a process that not even root may trace, a mount namespace in which no
//! process is, a file open on a mount that was unmounted lazily) is not found: a guard that waits for these would wait
//! forever. Loop devices, swap and the kernel's NFS server have no process, either.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::copies::{Copy, Device, Groups, Index, Target, targets};
use super::processes::{Stat, Task, tasks, text, unit};
use crate::host::mount_table::{self, Line};
use crate::host::{Holder, HostError};

/// How many holders are named of one volume.
const LISTED: usize = 10;

/// A staged volume to be asked about.
#[derive(Debug)]
pub(super) struct Question {
    /// Where it is staged.
    pub(super) path: PathBuf,
    /// The process that serves it: neither it nor what it started holds.
    pub(super) driver: Option<u32>,
    /// Who had it when this was asked last: such a one has it until it has ended.
    pub(super) before: BTreeSet<u32>,
}

/// The ways to have a volume, in the order in which a process's are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    Mount,
    Root,
    Works,
    Runs,
    Open,
    Maps,
}

/// One look at everything, for any number of volumes.
#[derive(Debug)]
pub(super) struct Look {
    targets: Vec<Target>,
    pub(super) copies: Vec<Copy>,
    /// Mount ids are unique in the whole kernel.
    pub(super) by_id: BTreeMap<u64, usize>,
    /// By namespace and mount point.
    pub(super) by_point: BTreeMap<OsString, BTreeMap<PathBuf, Vec<usize>>>,
    /// Mount points of all copies.
    pub(super) points: BTreeSet<PathBuf>,
    /// Superblocks that are one volume's alone: whoever has a file of one has the volume.
    pub(super) alone: BTreeMap<Device, BTreeSet<usize>>,
    /// For each question, the processes that do not count.
    families: Vec<BTreeSet<u32>>,
    /// For each question, one line per process and way.
    found: Vec<BTreeMap<(u32, Way), String>>,
}

/// Answers the questions, in their order. `root` is volumed's root directory, in which the mounts of other volumes are.
pub(super) fn look(root: &Path, questions: &[Question]) -> Vec<Result<Vec<Holder>, HostError>> {
    match look_at_all(root, questions) {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err((path, e)) => {
            let again = |_| io::Error::new(e.kind(), e.to_string());
            let failed = |source| HostError::Io { doing: "read", path: path.into(), source };
            questions.iter().map(again).map(|source| Err(failed(source))).collect()
        }
    }
}

const PROC: &str = "/proc";
const OUR_TABLE: &str = "/proc/thread-self/mountinfo";
const OUR_NAMESPACE: &str = "/proc/thread-self/ns/mnt";

type Failed = (&'static str, io::Error);

fn look_at_all(root: &Path, questions: &[Question]) -> Result<Vec<Vec<Holder>>, Failed> {
    let read = || mount_table::parse(&std::fs::read(OUR_TABLE)?);
    let ours = read().map_err(|e| (OUR_TABLE, e))?;
    let numbered = questions.iter().enumerate();
    let targets: Vec<Target> = numbered.flat_map(|(n, q)| targets(n, &q.path, &ours)).collect();
    if targets.is_empty() {
        // Nothing is mounted, so nobody can have it.
        return Ok(questions.iter().map(|_| Vec::new()).collect());
    }
    let our_namespace = std::fs::read_link(OUR_NAMESPACE).map_err(|e| (OUR_NAMESPACE, e))?.into_os_string();
    let people = People::all().map_err(|e| (PROC, e))?;
    let mut look = Look::new(questions, targets, &people);
    look.at_namespaces(root, &our_namespace, &ours, &people);
    for (task, namespace) in people.foreign() {
        look.at_task(task, namespace, people.stuck.contains(&task.pid));
    }
    look.at_the_ending(questions, &people.ending);
    Ok(look.holders())
}

/// All threads that have files, but for volumed's own.
#[derive(Debug)]
struct People {
    /// With the mount namespace that it is in.
    tasks: Vec<(Task, OsString)>,
    children: BTreeMap<u32, BTreeSet<u32>>,
    /// We, and our children that run our own program: they look at file systems for us.
    own: BTreeSet<u32>,
    /// Processes with a thread that may wait for a dead server, with the locks of its memory held.
    stuck: BTreeSet<u32>,
    /// Processes with a thread that is on its way out.
    ending: BTreeSet<u32>,
}

impl People {
    fn all() -> io::Result<Self> {
        let mut people = Self {
            tasks: Vec::new(),
            children: BTreeMap::new(),
            own: BTreeSet::new(),
            stuck: BTreeSet::new(),
            ending: BTreeSet::new(),
        };
        let mut refused = None;
        let ours = std::process::id();
        // Of our own threads nothing is asked but whose child we are, and there may be many.
        for task in tasks()?.into_iter().filter(|task| task.pid != ours || task.tid == ours) {
            let Some(stat) = task.read("stat").ok().and_then(|text| Stat::parse(&text)) else { continue };
            if stat.kernel {
                continue;
            }
            people.children.entry(stat.parent).or_default().insert(task.pid);
            if stat.stuck {
                people.stuck.insert(task.pid);
            }
            if stat.ending {
                people.ending.insert(task.pid);
            }
            match std::fs::read_link(task.directory.join("ns/mnt")) {
                Ok(namespace) => people.tasks.push((task, namespace.into_os_string())),
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => refused = Some(e),
                // It ended.
                Err(_) => {}
            }
        }
        let program = |pid: &u32| std::fs::read_link(format!("{PROC}/{pid}/exe")).ok();
        people.own = people.family(ours);
        people.own.retain(|pid| *pid == ours || program(pid) == program(&ours));
        match refused {
            Some(_) if people.foreign().next().is_none() => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "no process but our own may be looked at (CAP_SYS_PTRACE is needed)",
            )),
            Some(_) | None => Ok(people),
        }
    }

    fn foreign(&self) -> impl Iterator<Item = (&Task, &OsString)> {
        self.tasks
            .iter()
            .filter(|(task, _)| !self.own.contains(&task.pid))
            .map(|(task, namespace)| (task, namespace))
    }

    /// A process and all that it started, and these.
    fn family(&self, pid: u32) -> BTreeSet<u32> {
        let mut family = BTreeSet::from([pid]);
        let mut next = vec![pid];
        while let Some(at) = next.pop() {
            next.extend(self.children.get(&at).into_iter().flatten().copied().filter(|c| family.insert(*c)));
        }
        family
    }
}

impl Look {
    fn new(questions: &[Question], targets: Vec<Target>, people: &People) -> Self {
        let mut alone = BTreeMap::<_, BTreeSet<_>>::new();
        for target in targets.iter().filter(|target| target.alone) {
            alone.entry(target.device).or_default().insert(target.request);
        }
        let family = |question: &Question| question.driver.map(|pid| people.family(pid)).unwrap_or_default();
        Self {
            targets,
            copies: Vec::new(),
            by_id: BTreeMap::new(),
            by_point: BTreeMap::new(),
            points: BTreeSet::new(),
            alone,
            families: questions.iter().map(family).collect(),
            found: questions.iter().map(|_| BTreeMap::new()).collect(),
        }
    }

    /// Notes that a process has these volumes.
    pub(super) fn note(&mut self, of: &BTreeSet<usize>, pid: u32, way: Way, how: impl Fn() -> String) {
        for question in of {
            let known = self.families.get(*question).is_some_and(|family| family.contains(&pid));
            if !known && let Some(found) = self.found.get_mut(*question) {
                found.entry((pid, way)).or_insert_with(&how);
            }
        }
    }

    pub(super) fn is_noted(&self, question: usize, pid: u32, way: Way) -> bool {
        self.found.get(question).is_some_and(|found| found.contains_key(&(pid, way)))
    }

    /// The questions that a copy is about.
    pub(super) fn asked_of(&self, copy: &Copy) -> BTreeSet<usize> {
        copy.targets.iter().filter_map(|t| self.targets.get(*t)).map(|target| target.request).collect()
    }

    /// Reads the mount table of each namespace once and finds the copies that would stay.
    fn at_namespaces(&mut self, root: &Path, our_namespace: &OsString, ours: &[Line], people: &People) {
        let mut members: BTreeMap<&OsString, Vec<&Task>> = BTreeMap::new();
        for (task, namespace) in people.foreign() {
            members.entry(namespace).or_default().push(task);
        }
        members.entry(our_namespace).or_default();
        let index = Index::new(&self.targets);
        let mut groups = Groups::default();
        let mut copies = Vec::new();
        for (namespace, tasks) in &members {
            let theirs = if *namespace == our_namespace { None } else { Some(table(tasks)) };
            let table = theirs.as_deref().unwrap_or(ours);
            groups.add(table);
            // No table is kept: there may be many, with thousands of mounts.
            copies.extend(Copy::all(table, &index).into_iter().map(|copy| (*namespace, copy)));
        }
        for (namespace, copy) in &copies {
            for question in self.asked_of(copy) {
                if self.stays(question, copy, &groups) {
                    if *namespace == our_namespace {
                        self.note_beside(root, question, copy);
                    } else {
                        self.note_elsewhere(question, copy, members.get(*namespace));
                    }
                }
            }
        }
        for (namespace, copy) in copies {
            let at = self.copies.len();
            self.by_id.insert(copy.id, at);
            self.points.insert(copy.point.clone());
            let points = self.by_point.entry(namespace.clone()).or_default();
            points.entry(copy.point.clone()).or_default().push(at);
            self.copies.push(copy);
        }
    }

    /// Whether a copy is neither what is to be unmounted nor goes with it.
    fn stays(&self, question: usize, copy: &Copy, groups: &Groups) -> bool {
        let mut own = self.targets.iter().filter(|target| target.request == question);
        !own.any(|target| target.id == copy.id || copy.goes_with(target, groups))
    }

    /// Notes a second mount in our own namespace. Whose it is cannot be said, so volumed names itself and the place.
    fn note_beside(&mut self, root: &Path, question: usize, copy: &Copy) {
        // Two volumes of one NFS export have one superblock: what is mounted below our root is another volume's, since this
        // one is published nowhere any more.
        let alone = self.alone.get(&copy.device).is_some_and(|of| of.contains(&question));
        if !alone && copy.point.starts_with(root) {
            return;
        }
        let how =
            || format!("is in the mount namespace where it is also mounted at {}", copy.point.display());
        self.note(&BTreeSet::from([question]), std::process::id(), Way::Mount, how);
    }

    /// Notes a copy in another namespace, with the first of its processes that is not the driver's.
    fn note_elsewhere(&mut self, question: usize, copy: &Copy, members: Option<&Vec<&Task>>) {
        let family = self.families.get(question);
        let pids = members.into_iter().flatten().map(|task| task.pid);
        let Some(pid) = pids.filter(|pid| !family.is_some_and(|f| f.contains(pid))).min() else { return };
        let how =
            || format!("has a copy of the mount at {} in another mount namespace", copy.point.display());
        self.note(&BTreeSet::from([question]), pid, Way::Mount, how);
    }

    /// Notes who had a volume before and is about to end: its files are shown no more, and may be open still.
    fn at_the_ending(&mut self, questions: &[Question], ending: &BTreeSet<u32>) {
        for (number, question) in questions.iter().enumerate() {
            for pid in question.before.intersection(ending) {
                let how = || "had it, and is about to end".to_owned();
                self.note(&BTreeSet::from([number]), *pid, Way::Open, how);
            }
        }
    }

    /// Names the first holders of each volume.
    fn holders(self) -> Vec<Vec<Holder>> {
        let named = |((pid, _way), how): ((u32, Way), String)| {
            let read = |name| text(format!("{PROC}/{pid}/{name}")).ok();
            // One that ended meanwhile holds nothing.
            let command = read("comm")?.trim_end().to_owned();
            Some(Holder { pid, command, unit: read("cgroup").as_deref().and_then(unit), how })
        };
        let first = |found: BTreeMap<(u32, Way), String>| {
            let mut holders: Vec<Holder> = found.into_iter().filter_map(named).take(LISTED).collect();
            holders.sort();
            holders
        };
        self.found.into_iter().map(first).collect()
    }
}

/// Reads a namespace's table from a member that sees all of it; where all are chrooted, what the first one sees.
fn table(members: &[&Task]) -> Vec<Line> {
    let mut part = Vec::new();
    for task in members {
        let Ok(root) = std::fs::read_link(task.directory.join("root")) else { continue };
        let Ok(text) = task.read("mountinfo") else { continue };
        let Ok(mut table) = mount_table::parse(&text) else { continue };
        // A root on a detached mount also reads as "/", but shows no mount at it.
        if root == Path::new("/") && table.iter().any(|line| line.mount.point == Path::new("/")) {
            return table;
        }
        if part.is_empty() {
            for line in &mut table {
                // The table's paths begin at the root of its reader, all others at that of the namespace.
                let below = line.mount.point.strip_prefix("/").unwrap_or(&line.mount.point);
                line.mount.point = root.join(below);
            }
            part = table;
        }
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_had_a_volume_and_is_about_to_end_has_it_still() {
        let question = |driver, before: &[u32]| Question {
            path: "/k/s".into(),
            driver,
            before: before.iter().copied().collect(),
        };
        let questions = [question(None, &[7, 8]), question(Some(8), &[8]), question(None, &[])];
        let people = People {
            tasks: Vec::new(),
            children: BTreeMap::new(),
            own: BTreeSet::new(),
            stuck: BTreeSet::new(),
            ending: BTreeSet::from([8, 9]),
        };
        let mut look = Look::new(&questions, Vec::new(), &people);
        look.at_the_ending(&questions, &people.ending);
        let pids =
            |found: &BTreeMap<(u32, Way), String>| found.keys().map(|(pid, _)| *pid).collect::<Vec<_>>();
        assert_eq!(look.found.iter().map(pids).collect::<Vec<_>>(), [vec![8], vec![], vec![]]);
    }
}
