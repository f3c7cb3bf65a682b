//! Backends by URL.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::backend::{Backend, BoxFuture};
use crate::error::{Error, ErrorKind, Result};

type Connect = Box<dyn Fn(&str) -> BoxFuture<'static, Result<Arc<dyn Backend>>> + Send + Sync>;

/// Which URL scheme is connected how. There is no global one: a program makes its own and puts in what it was built
/// with.
///
/// ```
/// use postroad_core::{Registry, block_on, memory};
///
/// let mut registry = Registry::new();
/// memory::register(&mut registry);
/// let backend = block_on(registry.connect("memory:"))?;
/// assert_eq!(backend.name(), "memory");
/// assert!(block_on(registry.connect("carrier-pigeon:")).is_err());
/// # Ok::<(), postroad_core::Error>(())
/// ```
#[derive(Default)]
pub struct Registry {
    schemes: BTreeMap<&'static str, Connect>,
}

impl Registry {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// URLs that start with `scheme:` are connected by `connect`, which gets the whole URL. Replaces an earlier one.
    pub fn register<F, R>(&mut self, scheme: &'static str, connect: F) -> &mut Self
    where
        F: Fn(&str) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Arc<dyn Backend>>> + Send + 'static,
    {
        self.schemes.insert(scheme, Box::new(move |url| Box::pin(connect(url))));
        self
    }

    /// The schemes it knows, sorted.
    pub fn schemes(&self) -> impl Iterator<Item = &'static str> {
        self.schemes.keys().copied()
    }

    /// Connects. The error does not repeat the URL, which may hold a password.
    pub fn connect(&self, url: &str) -> BoxFuture<'static, Result<Arc<dyn Backend>>> {
        let scheme = url.split_once(':').map(|(scheme, _)| scheme);
        if let Some(connect) = scheme.and_then(|scheme| self.schemes.get(scheme)) {
            return connect(url);
        }
        let known: Vec<_> = self.schemes().collect();
        let text = match scheme {
            Some(scheme) => format!("no backend for `{scheme}:`, this program has: {}", known.join(", ")),
            None => format!("not a URL: start with one of {}, and `:`", known.join(", ")),
        };
        Box::pin(std::future::ready(Err(Error::new(ErrorKind::Config, "core", text))))
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.schemes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_scheme_names_the_known_ones() {
        let mut registry = Registry::new();
        let never = |_: &str| async { Err(Error::new(ErrorKind::Internal, "x", "not called")) };
        registry.register("nats", never).register("amqp", never);
        let error = |url| crate::block_on(registry.connect(url)).err().unwrap().to_string();
        assert_eq!(
            error("ftp://u:secret@h"),
            "core: no backend for `ftp:`, this program has: amqp, nats (config)"
        );
        assert_eq!(error("nothing"), "core: not a URL: start with one of amqp, nats, and `:` (config)");
        assert_eq!(error("nats://h"), "x: not called (internal)");
    }
}
