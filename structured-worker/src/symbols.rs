//! Symbol files in an object store.

use ramsift_layers::source::Web;
use ramsift_os::input::KernelSymbols;
use ramsift_store::{ObjectError, Objects};
use ramsift_symbols::store::{Files, windows};
use ramsift_symbols::{SymbolStore, SymbolTable, pdb};
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

/// Bytes of a symbol file of a server at most.
const MAX_FILE: u64 = 512 << 20;

/// A store, and servers that are asked for symbol files of Windows kernels that it lacks; what they give is kept in it.
#[derive(Debug)]
struct Served {
    store: SymbolStore<ObjectFiles>,
    servers: Vec<String>,
    web: Web,
    runtime: Handle,
}

impl KernelSymbols for Served {
    fn find(&self, banner: &str) -> Result<Option<SymbolTable>, String> {
        let known = self.store.find(banner).map_err(|e| e.to_string())?;
        let (None, Some((name, guid, age))) = (&known, windows(banner)) else {
            return Ok(known);
        };
        let mut trouble = Vec::new();
        for server in &self.servers {
            let server = server.trim_end_matches('/');
            let url = format!("{server}/{name}/{guid}{age:X}/{name}");
            let found = match self.runtime.block_on(self.web.get(&url, MAX_FILE)) {
                Ok(None) => continue,
                Ok(Some(file)) => self.keep(name, (guid, age), &file),
                Err(e) => Err(e),
            };
            match found {
                Ok(()) => return self.store.find(banner).map_err(|e| e.to_string()),
                Err(e) => {
                    tracing::warn!(url, error = %e, "symbol server");
                    trouble.push(format!("{url}: {e}"));
                }
            }
        }
        match trouble.is_empty() {
            true => Ok(None),
            false => Err(trouble.join("; ")),
        }
    }
}

impl Served {
    /// Keeps what a server gave, if it is what was asked for.
    fn keep(&self, name: &str, want: (&str, u32), file: &[u8]) -> Result<(), String> {
        let (guid, age) = pdb::key(file).map_err(|e| e.to_string())?;
        if (guid.as_str(), age) != want {
            return Err(format!("it is of {guid}-{age}, which was not asked for"));
        }
        let kept = self.store.import(name, file);
        kept.map(|_| ()).map_err(|e| e.to_string())
    }
}

/// The symbol store on these objects; what it lacks these servers are asked for. Must be called inside the async runtime.
pub fn symbol_store(objects: Arc<dyn Objects>, servers: Vec<String>) -> Arc<dyn KernelSymbols> {
    let runtime = Handle::current();
    let store = SymbolStore::new(ObjectFiles::new(objects));
    if servers.is_empty() {
        return Arc::new(store);
    }
    Arc::new(Served {
        store,
        servers,
        web: Web::default(),
        runtime,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramsift_store::LocalObjects;
    use ramsift_symbols::isf;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const BANNER: &str = "ntkrnlmp.pdb 59398F65FCDB23254C4C44205044422E-1";

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_server_has_is_kept_in_the_store() {
        let packed = include_bytes!("../../crates/symbols/tests/data/ntkrnlmp.pdb.xz");
        let file = isf::decompress(packed).expect("xz").into_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let at = format!(
            "http://{}/symbols/",
            listener.local_addr().expect("address")
        );
        let server = tokio::spawn(async move {
            let (mut s, _) = listener.accept().await.expect("client");
            let mut request = vec![0; 4096];
            let n = s.read(&mut request).await.expect("request");
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                file.len()
            );
            s.write_all(head.as_bytes()).await.expect("head");
            s.write_all(&file).await.expect("file");
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        let dir = tempfile::tempdir().expect("tempdir");
        let open = || Arc::new(LocalObjects::open(dir.path()).expect("store"));
        let ask = |servers: Vec<String>, banner: &'static str| {
            let symbols = symbol_store(open(), servers);
            tokio::task::spawn_blocking(move || symbols.find(banner).map(|t| t.is_some()))
        };
        assert_eq!(ask(Vec::new(), BANNER).await.expect("thread"), Ok(false));
        assert_eq!(
            ask(vec![at.clone()], BANNER).await.expect("thread"),
            Ok(true)
        );
        let asked = server.await.expect("server");
        let want =
            "GET /symbols/ntkrnlmp.pdb/59398F65FCDB23254C4C44205044422E1/ntkrnlmp.pdb HTTP/1.1";
        assert_eq!(asked.lines().next(), Some(want));
        // Nobody listens any more.
        assert_eq!(ask(Vec::new(), BANNER).await.expect("thread"), Ok(true));
        let other = "ntkrnlmp.pdb 00000000000000000000000000000000-1";
        let e = ask(vec![at.clone()], other)
            .await
            .expect("thread")
            .expect_err("no server");
        assert!(e.contains(&at), "{e}");
        // Kernels of Linux are asked of no server.
        let none = ask(vec![at], "Linux version 6.1").await.expect("thread");
        assert_eq!(none, Ok(false));
    }
}
