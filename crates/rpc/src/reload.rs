//! Certificates that can be replaced while a server runs.
//!
//! A [`ReloadableTls`] follows the three files. New connections, accepted or dialled, use what it holds
//! at that moment; open connections keep the certificate that they began with. They end by themselves
//! when that certificate does: calls are refused from then on, and a lane gives the link up and
//! connects again with the certificate that is in use by then.
//!
//! A set of files that cannot be used never replaces one that can. To change the authority, put the old
//! and the new one into `ca.pem` everywhere, then replace the certificates one by one, and then take
//! the old authority out: at every moment any two parties trust each other.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};

use crate::{
    inspection::utc,
    tls::{TlsError, TlsFiles, TlsMaterial},
};

/// What a reload changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// Serial number of the certificate before.
    pub old_serial: String,
    /// Serial number of the certificate now.
    pub new_serial: String,
    /// End of the validity now, in seconds since 1970-01-01 UTC.
    pub not_after: i64,
    /// Names of the authorities that are trusted now.
    pub authorities: Vec<String>,
}

impl fmt::Display for Reloaded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { old_serial, new_serial, not_after, authorities } = self;
        write!(
            formatter,
            "certificate {new_serial}, valid until {}, in place of {old_serial}; trusting {}",
            utc(*not_after),
            authorities.join(" and ")
        )
    }
}

/// One party's certificate, key and authorities, replaced when their files are. Clones share them.
#[derive(Clone)]
pub struct ReloadableTls {
    shared: Arc<Shared>,
}

struct Shared {
    files: TlsFiles,
    current: watch::Sender<Arc<TlsMaterial>>,
    /// Why the files differ from what is in use.
    refusal: Mutex<Option<String>>,
    hurry: Notify,
}

impl ReloadableTls {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`TlsError`] names the file, the holder and the remedy.
    pub fn open(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(files.load()?.into())
    }

    /// What new connections use.
    pub fn current(&self) -> Arc<TlsMaterial> {
        Arc::clone(&self.shared.current.borrow())
    }

    /// Tells when [`ReloadableTls::current`] has changed.
    pub fn subscribe(&self) -> watch::Receiver<Arc<TlsMaterial>> {
        self.shared.current.subscribe()
    }

    /// Why the files are not what is in use, as the last reload found them; `None` if they are.
    pub fn refusal(&self) -> Option<String> {
        self.shared.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again and uses them if they are good; `None` if they have not changed.
    ///
    /// # Errors
    /// [`TlsError`], and then what was in use stays so: [`TlsError::OtherIdentity`] for the certificate
    /// of somebody else, [`TlsError::OtherAuthority`] if no authority in the file is trusted now, and
    /// what [`TlsFiles::load`] refuses.
    pub fn reload(&self) -> Result<Option<Reloaded>, TlsError> {
        let outcome = self.try_reload();
        let refusal = outcome.as_ref().err().map(ToString::to_string);
        *self.shared.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
        outcome
    }

    fn try_reload(&self) -> Result<Option<Reloaded>, TlsError> {
        let files = &self.shared.files;
        let contents = files.read()?;
        let old = self.current();
        if old.is_made_of(&contents) {
            return Ok(None);
        }
        let new = files.check(contents)?;
        if new.identity() != old.identity() {
            return Err(TlsError::OtherIdentity {
                path: files.certificate.clone(),
                expected: old.identity().clone(),
                found: new.identity().clone(),
            });
        }
        let names = |material: &TlsMaterial| -> Vec<String> {
            material.authorities().iter().map(|authority| authority.subject.clone()).collect()
        };
        if !new.shares_authority(&old) {
            return Err(TlsError::OtherAuthority {
                ca: files.ca.clone(),
                trusted: names(&old).join(" and "),
            });
        }
        let reloaded = Reloaded {
            old_serial: old.info().serial.clone(),
            new_serial: new.info().serial.clone(),
            not_after: new.info().not_after,
            authorities: names(&new),
        };
        self.shared.current.send_replace(Arc::new(new));
        Ok(Some(reloaded))
    }

    /// Makes [`ReloadableTls::follow`] look at the files now.
    pub fn hurry(&self) {
        self.shared.hurry.notify_one();
    }

    /// Looks at the files every `interval` until the future is dropped, and tells what was reloaded or
    /// refused. Files that change one after the other do not fit together in between, so a refusal is
    /// told only when it lasts for two looks, and once as long as it stays the same.
    pub async fn follow(&self, interval: Duration, mut tell: impl FnMut(Result<Reloaded, TlsError>)) {
        let mut looks = Looks::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = self.shared.hurry.notified() => {}
            }
            let this = self.clone();
            // The files may lie on a slow volume.
            let Ok(outcome) = tokio::task::spawn_blocking(move || this.reload()).await else { return };
            if let Some(news) = looks.news(outcome) {
                tell(news);
            }
        }
    }
}

/// What was seen and told of the files so far.
#[derive(Default)]
struct Looks {
    seen: Option<String>,
    told: Option<String>,
}

impl Looks {
    /// What is worth telling of a look.
    fn news(&mut self, outcome: Result<Option<Reloaded>, TlsError>) -> Option<Result<Reloaded, TlsError>> {
        let error = match outcome {
            Ok(reloaded) => {
                *self = Self::default();
                return reloaded.map(Ok);
            }
            Err(error) => error,
        };
        let text = Some(error.to_string());
        let lasts = self.seen == text;
        self.seen.clone_from(&text);
        if !lasts || self.told == text {
            return None;
        }
        self.told = text;
        Some(Err(error))
    }
}

impl From<TlsMaterial> for ReloadableTls {
    fn from(material: TlsMaterial) -> Self {
        let files = material.files().clone();
        let current = watch::Sender::new(Arc::new(material));
        Self { shared: Arc::new(Shared { files, current, refusal: Mutex::default(), hurry: Notify::new() }) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        certificates::{Authority, CertifiedKeyPem},
        identity::{Identity, Role},
    };

    fn issue(authority: &Authority, name: &str) -> CertifiedKeyPem {
        authority.issue(&Identity::new(Role::Server, name).unwrap(), &[], 60).unwrap()
    }

    fn put(pair: &CertifiedKeyPem, files: &TlsFiles) {
        fs::write(&files.key, pair.key_pem()).unwrap();
        fs::write(&files.certificate, pair.certificate_pem()).unwrap();
    }

    fn refused(tls: &ReloadableTls, needles: &[&str]) {
        let before = tls.current();
        let error = tls.reload().unwrap_err().to_string();
        for needle in needles {
            assert!(error.contains(needle), "{needle}: {error}");
        }
        assert_eq!(tls.refusal(), Some(error));
        assert!(Arc::ptr_eq(&before, &tls.current()), "what was in use stays so");
    }

    #[test]
    fn good_files_replace_and_bad_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let first = issue(&authority, "server-0");
        let files = first.save(folder.path()).unwrap();
        let tls = ReloadableTls::open(&files).unwrap();
        assert_eq!(tls.reload().unwrap(), None);

        let second = issue(&authority, "server-0");
        fs::write(&files.key, second.key_pem()).unwrap();
        refused(&tls, &["server-0.key", "does not belong"]);
        fs::write(&files.certificate, second.certificate_pem()).unwrap();
        let old = tls.current();
        let reloaded = tls.reload().unwrap().unwrap();
        assert_eq!(reloaded.old_serial, old.info().serial);
        assert_eq!(reloaded.new_serial, tls.current().info().serial);
        assert!(reloaded.to_string().contains(" UTC"), "{reloaded}");
        assert_eq!((tls.refusal(), tls.reload().unwrap()), (None, None));

        put(&issue(&authority, "server-1"), &files);
        refused(&tls, &["server-0.pem", "server `server-1`", "this is server `server-0`"]);
        let identity = Identity::server(0).unwrap();
        put(&authority.issue_between(&identity, &[], 1_000_000, 2_000_000).unwrap(), &files);
        refused(&tls, &["1970-01-24", "renew"]);
        let other = Authority::create().unwrap();
        put(&issue(&other, "server-0"), &files);
        refused(&tls, &["server-0.pem", "ca.pem", "not among the authorities"]);
        fs::write(&files.ca, other.certificate_pem()).unwrap();
        refused(&tls, &["ca.pem", "none of the authorities", "old and the new"]);
        fs::remove_file(&files.ca).unwrap();
        refused(&tls, &["cannot read", "ca.pem"]);
    }

    #[test]
    fn the_authority_changes_in_three_steps() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (Authority::create().unwrap(), Authority::create().unwrap());
        let files = issue(&old, "server-0").save(folder.path()).unwrap();
        let tls = ReloadableTls::open(&files).unwrap();
        let [old_name, new_name] = [&old, &new].map(|authority| {
            crate::inspection::CertificateInfo::read(&authority.certificate_der()).unwrap().subject
        });

        fs::write(&files.ca, format!("{}{}", old.certificate_pem(), new.certificate_pem())).unwrap();
        assert_eq!(tls.reload().unwrap().unwrap().authorities, [old_name.clone(), new_name.clone()]);
        assert_eq!(tls.current().authority().subject, old_name);
        put(&issue(&new, "server-0"), &files);
        assert!(tls.reload().unwrap().is_some());
        assert_eq!(tls.current().authority().subject, new_name);
        fs::write(&files.ca, new.certificate_pem()).unwrap();
        assert_eq!(tls.reload().unwrap().unwrap().authorities, [new_name]);
    }

    #[test]
    fn a_lasting_refusal_is_told_once_and_a_passing_one_never() {
        let refusal = |server| Err(TlsError::NoSuchServer { server });
        let mut looks = Looks::default();
        assert!(looks.news(refusal(3)).is_none(), "the files may be half changed");
        assert!(looks.news(Ok(None)).is_none());
        assert!(looks.news(refusal(3)).is_none());
        assert!(looks.news(refusal(3)).is_some_and(|news| news.is_err()));
        assert!(looks.news(refusal(3)).is_none(), "told once");
        assert!(looks.news(refusal(4)).is_none());
        assert!(looks.news(refusal(4)).is_some(), "another refusal is told");
    }

    #[tokio::test]
    async fn files_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let files = issue(&authority, "server-0").save(folder.path()).unwrap();
        let tls = ReloadableTls::open(&files).unwrap();
        let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
        let follower = tls.clone();
        tokio::spawn(async move {
            let tell = |outcome: Result<Reloaded, TlsError>| {
                sender.send(outcome.map_err(|error| error.to_string())).unwrap();
            };
            follower.follow(Duration::from_millis(20), tell).await;
        });
        let next = issue(&authority, "server-0");
        fs::write(&files.key, next.key_pem()).unwrap();
        let text = told.recv().await.unwrap().unwrap_err();
        assert!(text.contains("does not belong"), "{text}");
        fs::write(&files.certificate, next.certificate_pem()).unwrap();
        assert!(told.recv().await.unwrap().is_ok());
        assert_eq!(tls.refusal(), None);
    }
}
