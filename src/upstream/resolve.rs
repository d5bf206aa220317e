//! Resolving names, in a way that tells afterwards whether it had come to its end.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;

use super::fault::{Attributed, Fault};
use super::hint::NOT_RESOLVED;
use crate::net::SystemResolver;

tokio::task_local! {
    /// The connector makes its resolver by itself, so this is how the resolver is told whom it works for.
    static PROGRESS: ResolveProgress;
}

/// Whether a connection that is being opened waits for a name to be resolved.
#[derive(Clone, Default)]
pub(super) struct ResolveProgress(Arc<AtomicBool>);

impl ResolveProgress {
    /// Notes the progress of a future that connects.
    pub(super) fn of<F: Future>(&self, connecting: F) -> impl Future<Output = F::Output> + use<F> {
        PROGRESS.scope(self.clone(), connecting)
    }

    pub(super) fn is_resolving(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(is_resolving: bool) {
        // Nobody wants to know outside of a scope.
        let _ = PROGRESS.try_with(|progress| progress.0.store(is_resolving, Ordering::Relaxed));
    }
}

/// A resolver, by default the system's.
#[derive(Clone)]
pub(super) struct Resolver<R = SystemResolver>(R);

impl Resolver {
    pub(super) fn new() -> Self {
        Self(SystemResolver::new())
    }
}

impl<R> Resolver<R> {
    /// One that goes by another.
    #[cfg(test)]
    pub(super) fn by(inner: R) -> Self {
        Self(inner)
    }
}

impl<R> Service<Name> for Resolver<R>
where
    R: Service<Name, Error = io::Error>,
    R::Future: Send + 'static,
{
    type Response = R::Response;
    type Error = Attributed;
    type Future = Pin<Box<dyn Future<Output = Result<R::Response, Attributed>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Attributed>> {
        self.0.poll_ready(context).map_err(|error| failure(&error))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolving = self.0.call(name);
        Box::pin(async move {
            ResolveProgress::set(true);
            let resolved = resolving.await;
            ResolveProgress::set(false);
            resolved.map_err(|error| failure(&error))
        })
    }
}

fn failure(error: &io::Error) -> Attributed {
    let fault = Fault::of_resolver(error);
    // A system call that failed, such as for want of descriptors, says nothing of the name.
    let hint = if fault == Fault::Unreachable { format!(". {NOT_RESOLVED}") } else { String::new() };
    Attributed { fault, words: format!("{error}{hint}") }
}
