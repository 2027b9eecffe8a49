//! What answers change: the map that is published, and what is told of it.

use std::sync::Arc;

use tokio::time::Instant;

use super::ask::Answer;
use super::target::{Of, Target, spaces};
use super::{Asked, GATHER, Poller, Process, Whom};
use crate::csi::Driver;
use crate::error::Chain;
use crate::host::{NoUsage, Usage};
use crate::model::{DriverName, Event, EventKind, Ill, IllKind, PublicationId, Space, VolumeHealth};

impl Poller {
    pub(super) fn take(&mut self, asked: Asked) {
        let now = Instant::now();
        match asked {
            Asked::Driver { id, target, client, answer } => {
                self.busy.remove(&target.key);
                let waiting = std::mem::take(&mut self.waiting);
                self.due.extend(waiting.into_iter().map(|id| (now, Whom::Driver, id)));
                if answer.no_stats || answer.no_health {
                    if let Some(driver) = target.driver() {
                        self.not_offered(driver, client, &answer);
                    }
                    // The file system tells what the driver does not.
                    self.due.retain(|(_, whom, other)| (*whom, other) != (Whom::FileSystem, &id));
                    self.due.insert((now, Whom::FileSystem, id.clone()));
                }
                if self.targets.get(&id) == Some(&*target) {
                    let again = self.again(now);
                    self.due.insert((again, Whom::Driver, id.clone()));
                    self.learn(&id, &target, Whom::Driver, *answer);
                }
            }
            Asked::FileSystems { targets, usage } => {
                self.measuring = false;
                // Of a question that could not be asked nothing is known, of no server either.
                let usage = usage.map_err(|error| Chain(&error).to_string());
                for (id, target) in targets {
                    let told = match &usage {
                        Ok(told) => told.get(&target.path).cloned(),
                        Err(error) => Some(Err(NoUsage::Refused(error.clone()))),
                    };
                    let Some(told) = told else { continue };
                    if self.targets.get(&id) == Some(&target) {
                        let ills = match &target.of {
                            Of::Server(server) if usage.is_ok() => {
                                Some(self.ills_of(&id, &format!("the NFS server {server}"), &told))
                            }
                            Of::Disk if usage.is_ok() => Some(self.ills_of(&id, "its file system", &told)),
                            Of::Server(_) | Of::Disk | Of::Driver(..) => None,
                        };
                        let answer = match told {
                            Ok(usage) => Answer { usage: Some(spaces(usage)), ills, ..Answer::default() },
                            Err(error) => {
                                Answer { error: Some(error.to_string()), ills, ..Answer::default() }
                            }
                        };
                        self.learn(&id, &target, Whom::FileSystem, answer);
                    }
                }
            }
        }
    }

    /// Returns what is wrong with a volume of whose health its file system is asked.
    fn ills_of(&self, id: &PublicationId, who: &str, told: &Result<Usage, NoUsage>) -> Vec<Ill> {
        let (kind, message) = match told {
            Ok(_) => return Vec::new(),
            Err(NoUsage::Silent(_)) => (IllKind::Silent, format!("{who} does not answer")),
            Err(NoUsage::Refused(said)) => {
                (IllKind::Inaccessible, format!("{who} answers with an error: {said}"))
            }
        };
        let before = self.known.get(id).and_then(VolumeHealth::ill).filter(|ill| ill.kind == kind);
        let since = before.and_then(|ill| ill.since).unwrap_or_else(|| self.parts.ambient.now());
        vec![Ill { kind, reason: String::new(), message, since: Some(since) }]
    }

    fn not_offered(&mut self, driver: &DriverName, client: Arc<dyn Driver>, answer: &Answer) {
        let process = self.processes.entry(driver.clone()).or_insert_with(|| Process {
            client: Arc::clone(&client),
            no_stats: false,
            no_health: false,
        });
        if !Arc::ptr_eq(&process.client, &client) {
            *process = Process { client, no_stats: false, no_health: false };
        }
        process.no_stats |= answer.no_stats;
        process.no_health |= answer.no_health;
    }

    /// Keeps an answer; what it does not tell stays as it was.
    fn learn(&mut self, id: &PublicationId, target: &Target, whom: Whom, answer: Answer) {
        let now = self.parts.ambient.now();
        match answer.error {
            Some(error) => self.errors.insert((id.clone(), whom), error),
            None => self.errors.remove(&(id.clone(), whom)),
        };
        let error = [Whom::Driver, Whom::FileSystem].into_iter();
        let error = error.filter_map(|whom| self.errors.get(&(id.clone(), whom))).next().cloned();
        let known = self.known.entry(id.clone()).or_insert_with(|| VolumeHealth {
            key: target.key.clone(),
            bytes: Space::default(),
            inodes: Space::default(),
            ills: Vec::new(),
            measured_at: None,
            error: None,
        });
        known.error = error;
        let is_silent = |ills: &Vec<Ill>| ills.iter().any(|ill| ill.kind == IllKind::Silent);
        if answer.usage.is_some() || answer.ills.as_ref().is_some_and(|ills| !is_silent(ills)) {
            known.measured_at = Some(now);
        }
        if let Some((bytes, inodes)) = answer.usage {
            (known.bytes, known.inodes) = (bytes, inodes);
        }
        if let Some(ills) = answer.ills {
            known.ills = ills;
        }
        self.tell(target);
        self.show_at.get_or_insert_with(|| Instant::now() + GATHER);
    }

    /// Tells when a volume is not well at the first of its publications, and when it is at all of them.
    fn tell(&mut self, target: &Target) {
        let (key, driver) = (&target.key, target.driver());
        let ill = self.known.values().filter(|known| known.key == *key).find_map(VolumeHealth::ill);
        let kind = match ill {
            Some(ill) if self.ill.insert(key.clone()) => {
                EventKind::VolumeUnwell { key: key.clone(), driver: driver.cloned(), reason: ill.to_string() }
            }
            None if self.ill.remove(key) => {
                EventKind::VolumeWell { key: key.clone(), driver: driver.cloned() }
            }
            Some(_) | None => return,
        };
        self.parts.events.tell(Event { at: self.parts.ambient.now(), kind });
    }
}
