//! Resolves host names, and records whether the resolution has finished, so that a connect timeout can say so.

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
    /// The connector calls the resolver itself, so the resolver gets the progress of the current connection from here.
    static PROGRESS: ResolveProgress;
}

/// Whether the opening of a connection is waiting for name resolution.
#[derive(Clone, Default)]
pub(super) struct ResolveProgress(Arc<AtomicBool>);

impl ResolveProgress {
    /// Records the progress of a future that connects.
    pub(super) fn of<F: Future>(&self, connecting: F) -> impl Future<Output = F::Output> + use<F> {
        PROGRESS.scope(self.clone(), connecting)
    }

    pub(super) fn is_resolving(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(is_resolving: bool) {
        // Outside of a scope there is nothing to record.
        let _ = PROGRESS.try_with(|progress| progress.0.store(is_resolving, Ordering::Relaxed));
    }
}

#[derive(Clone)]
pub(super) struct Resolver<R = SystemResolver>(R);

impl Resolver {
    pub(super) fn new() -> Self {
        Self(SystemResolver::new())
    }
}

impl<R> Resolver<R> {
    #[cfg(test)]
    pub(super) fn with(inner: R) -> Self {
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
    // A failed system call, for example without free file descriptors, says nothing about the name.
    let hint = if fault == Fault::Unreachable { format!(". {NOT_RESOLVED}") } else { String::new() };
    Attributed { fault, message: format!("{error}{hint}") }
}
