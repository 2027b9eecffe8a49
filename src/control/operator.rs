//! The calls that say what volumed shall leave alone, take over or let go: pause, resume, adopt and release.

use std::str::FromStr;

use tonic::Status as Refusal;

use super::names::{HandoverName, ObjectName, ScopeName};
use super::server::{MAX_OBJECTS, Server, count};
use super::{Request, paused, views};
use crate::model::{Handover, Scope, Status};
use crate::proto::control as api;

/// What `pause` and `resume` are about.
enum Scopes {
    All,
    Named(Vec<ScopeName>),
}

impl Scopes {
    fn of(names: &[String], all: bool) -> Result<Self, Refusal> {
        match (names.is_empty(), all) {
            (true, true) => Ok(Self::All),
            (false, false) if names.len() <= MAX_OBJECTS => {
                let parsed: Result<_, Refusal> = names.iter().map(|name| parsed(name)).collect();
                parsed.map(Self::Named)
            }
            (false, false) => {
                Err(Refusal::invalid_argument(format!("more than {MAX_OBJECTS} names in one call")))
            }
            (true, false) => Err(Refusal::invalid_argument("name a pod, a claim or a driver, or say all")),
            (false, true) => Err(Refusal::invalid_argument("either names, or all: not both")),
        }
    }
}

impl Server {
    pub(super) async fn do_pause(&self, asked: api::PauseRequest) -> Result<api::PauseResponse, Refusal> {
        let mut unknown = Vec::new();
        let mut scopes = Vec::new();
        match Scopes::of(&asked.scopes, asked.all)? {
            Scopes::All => scopes.push(Scope::All),
            Scopes::Named(names) => {
                let status = self.status.borrow();
                for name in names {
                    if is_known(&status, &name) {
                        scopes.push(name.scope());
                    } else {
                        unknown.push(name.to_string());
                    }
                }
            }
        }
        for scope in scopes {
            self.ask(|reply| Request::Pause { scope, reply }).await?.map_err(refused)?;
        }
        Ok(api::PauseResponse { paused: paused::words(&self.status.borrow()), unknown })
    }

    pub(super) async fn do_resume(&self, asked: api::ResumeRequest) -> Result<api::ResumeResponse, Refusal> {
        let (mut resumed, mut unknown) = (0, Vec::new());
        match Scopes::of(&asked.scopes, asked.all)? {
            Scopes::All => {
                resumed =
                    self.ask(|reply| Request::Resume { scope: Scope::All, reply }).await?.map_err(refused)?;
            }
            Scopes::Named(names) => {
                for name in names {
                    let scope = name.scope();
                    match self.ask(|reply| Request::Resume { scope, reply }).await?.map_err(refused)? {
                        0 => unknown.push(name.to_string()),
                        taken_back => resumed += taken_back,
                    }
                }
            }
        }
        let still = paused::words(&self.status.borrow());
        Ok(api::ResumeResponse { resumed: count(resumed), paused: still, unknown })
    }

    pub(super) async fn do_adopt(&self, asked: api::AdoptRequest) -> Result<api::AdoptResponse, Refusal> {
        let what = match parsed(&asked.path)? {
            HandoverName::Path(path) => Handover::Path(path),
            HandoverName::Object(_) => {
                return Err(Refusal::invalid_argument(format!(
                    "{:?} is no absolute path; volumectl foreign lists what can be adopted",
                    asked.path
                )));
            }
        };
        let done = self.ask(|reply| Request::Adopt { what, reply }).await?.map_err(refused)?;
        Ok(api::AdoptResponse { done })
    }

    pub(super) async fn do_release(
        &self,
        asked: api::ReleaseRequest,
    ) -> Result<api::ReleaseResponse, Refusal> {
        let name: HandoverName = parsed(&asked.what)?;
        if let HandoverName::Object(object) = &name
            && !views::is_known(&self.status.borrow(), object)
        {
            return Ok(api::ReleaseResponse { done: Vec::new(), unknown: vec![object.to_string()] });
        }
        let (what, force) = (name.handover(), asked.force);
        let done = self.ask(|reply| Request::Release { what, force, reply }).await?.map_err(refused)?;
        Ok(api::ReleaseResponse { done, unknown: Vec::new() })
    }

    pub(super) async fn do_accept_identity(
        &self,
        asked: api::AcceptIdentityRequest,
    ) -> Result<api::AcceptIdentityResponse, Refusal> {
        let name: ObjectName = parsed(&asked.object)?;
        if !views::is_known(&self.status.borrow(), &name) {
            return Ok(api::AcceptIdentityResponse { done: Vec::new(), unknown: vec![name.to_string()] });
        }
        let object = name.object();
        let done = self.ask(|reply| Request::AcceptIdentity { object, reply }).await?.map_err(refused)?;
        Ok(api::AcceptIdentityResponse { done, unknown: Vec::new() })
    }
}

fn is_known(status: &Status, name: &ScopeName) -> bool {
    match name {
        ScopeName::Object(object) => views::is_known(status, object),
        ScopeName::Driver(driver) => {
            let of_it = |csi: &(crate::model::DriverName, String)| csi.0 == *driver;
            status.drivers.contains_key(driver)
                || status.volumes.values().any(|volume| volume.csi.as_ref().is_some_and(of_it))
        }
    }
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(name: &str) -> Result<T, Refusal> {
    name.parse().map_err(|bad: T::Err| Refusal::invalid_argument(bad.to_string()))
}

/// The loop's own words.
fn refused(reason: String) -> Refusal {
    Refusal::failed_precondition(reason)
}
