//! NodeExpandVolume: before a pod gets the volume, and while it has it (kubelet.md 8, csi.md 6.4).
//!
//! Nobody but this node remembers how large a volume is here: the record does while it is up, the store's size afterwards.

use super::{Work, fault, store_failure};
use crate::model::{
    ExpandArguments, ExpandStep, ExpansionRecord, ExpansionState, Failure, Growth, Outcome, SecretMap,
};
use crate::record::Durability;
use crate::volumes;

impl Work<'_> {
    /// Grows a volume that is published, while its pods run.
    pub(super) async fn expand(&mut self, step: &ExpandStep) -> Result<Outcome, Failure> {
        self.call_expand(&step.arguments, &step.secrets).await?;
        Ok(Outcome::Changed)
    }

    /// Grows a volume before its first pod gets it, if it is known to be smaller than it is to be. A driver that can only do
    /// it while nobody uses the volume does not keep the pod waiting.
    pub(super) async fn grow_at_bring_up(&mut self, growth: &Growth) -> Result<(), Failure> {
        let wanted = growth.size.capacity;
        if growth.read_only && growth.size.every_node {
            // What a reader noted would be taken for the one call that each node owes its writer.
            return Ok(());
        }
        let remembered = match self.record.size {
            Some(size) => Some(size),
            None => {
                self.executor.store.size(self.key.clone()).await.map_err(|error| store_failure(&error))?
            }
        };
        // Without any memory the volume is what its PV says: a kubelet begins like that too.
        // A PV that says less than what is remembered has another volume behind its handle, or never grew: nothing shrinks, and
        // the next growth begins from what it says.
        let known = remembered.or(growth.size.claimed).unwrap_or(wanted).min(wanted);
        let once_here = growth.size.every_node && remembered.is_none();
        if growth.read_only || (known >= wanted && !once_here) {
            return self.remember(known, remembered).await;
        }
        if self.is_refused_in_use() {
            // It has been in use ever since (csi.md 10, 26).
            return self.remember(known, remembered).await;
        }
        match self.call_expand(&growth.arguments, &growth.secrets).await {
            Ok(()) => Ok(()),
            Err(_) if self.is_refused_in_use() => self.remember(known, remembered).await,
            // A disk that nobody made larger yet keeps no pod waiting: it grows when it is.
            Err(failure) if self.record.volume.disk().is_some() => {
                self.notes.push(failure.cause.detail);
                self.remember(known, remembered).await
            }
            Err(failure) => Err(failure),
        }
    }

    async fn call_expand(&mut self, wanted: &ExpandArguments, secrets: &SecretMap) -> Result<(), Failure> {
        // What was begun is finished first, in its size (csi.md 10, 26); where it is shown by now, it is asked for there.
        let mut arguments = wanted.clone();
        if let Some(open) = self.record.expansion.as_ref().filter(|e| e.state == ExpansionState::Open) {
            arguments.required_bytes = open.arguments.required_bytes;
        }
        let mut call = self.call()?;
        call.disk = self.staged_disk_to_grow().await?;
        self.intend(|record, _| {
            let expansion = ExpansionRecord {
                arguments: arguments.clone(),
                state: ExpansionState::Open,
                said: String::new(),
            };
            record.expansion = Some(Box::new(expansion));
        })
        .await?;
        fault::reached("expand:intent");
        self.grow_encryption(secrets).await?;
        self.progress.tell(match arguments.required_bytes {
            0 => "growing with its device".to_owned(),
            bytes => format!("growing to {bytes} bytes"),
        });
        let grown = volumes::of(&self.record.volume).expand(&self.site(), &call, &arguments, secrets).await;
        fault::reached("expand:call");
        match grown {
            Ok(()) => {
                // Nothing was asked for but to be as large as its disk.
                let size = Some(arguments.required_bytes).filter(|size| *size > 0);
                if let Some(size) = size {
                    let remembered = self.executor.store.set_size(self.key.clone(), size).await;
                    remembered.map_err(|error| store_failure(&error))?;
                }
                self.update(Durability::Written, |record, _| {
                    record.size = size.or(record.size);
                    record.expansion = None;
                })
                .await
            }
            Err(error) => {
                // If this cannot be written the record says Open, which asks for the same again: the safe side.
                let _unwritten = self
                    .update(Durability::Written, |record, _| {
                        if let Some(expansion) = &mut record.expansion {
                            expansion.state = error.state;
                            expansion.said.clone_from(&error.failure.cause.detail);
                        }
                    })
                    .await;
                Err(error.failure)
            }
        }
    }

    fn is_refused_in_use(&self) -> bool {
        self.record.expansion.as_ref().is_some_and(|e| e.state == ExpansionState::InUse)
    }

    /// Keeps the size in mind; it gets into the record with the outcome that follows.
    async fn remember(&mut self, size: u64, remembered: Option<u64>) -> Result<(), Failure> {
        if remembered != Some(size) {
            let written = self.executor.store.set_size(self.key.clone(), size).await;
            written.map_err(|error| store_failure(&error))?;
        }
        self.size = Some(size);
        Ok(())
    }
}
