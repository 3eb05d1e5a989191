//! Symbol files in an object store.

use ramsift_os::input::KernelSymbols;
use ramsift_store::{ObjectError, Objects};
use ramsift_symbols::SymbolStore;
use ramsift_symbols::store::Files;
use std::io;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Files of a symbol store under a prefix of an object store. Its calls block: they are for threads
/// where that is allowed.
#[derive(Clone, Debug)]
pub struct ObjectFiles {
    objects: Arc<dyn Objects>,
    runtime: Handle,
}

impl ObjectFiles {
    /// Must be called inside the async runtime.
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self {
            objects,
            runtime: Handle::current(),
        }
    }
}

fn error(e: ObjectError) -> io::Error {
    if e.is_not_found() {
        io::Error::new(io::ErrorKind::NotFound, e.to_string())
    } else {
        io::Error::other(e.to_string())
    }
}

impl Files for ObjectFiles {
    fn list(&self) -> io::Result<Vec<String>> {
        let all = self.runtime.block_on(self.objects.list(""));
        let names = all.map_err(error)?.into_iter().map(|m| m.key);
        Ok(names.filter(|k| !k.contains('/')).collect())
    }

    fn read(&self, name: &str, max: u64) -> io::Result<Vec<u8>> {
        let meta = self.runtime.block_on(self.objects.head(name));
        let size = meta.map_err(error)?.size;
        if size > max {
            let why = format!("{name} has {size} bytes, more than {max}");
            return Err(io::Error::other(why));
        }
        let got = self.runtime.block_on(self.objects.get(name));
        got.map(|(data, _)| data.to_vec()).map_err(error)
    }

    fn write(&self, name: &str, data: &[u8]) -> io::Result<()> {
        let put = self.objects.put(name, data.to_vec().into());
        self.runtime.block_on(put).map(|_| ()).map_err(error)
    }
}

/// The symbol store on these objects.
pub fn symbol_store(objects: Arc<dyn Objects>) -> Arc<dyn KernelSymbols> {
    Arc::new(SymbolStore::new(ObjectFiles::new(objects)))
}
