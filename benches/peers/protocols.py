"""How clients speak to the measured server: HTTP/1.1 or HTTP/2, in plaintext or with TLS 1.3."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

SUITE = ("TLS_AES_256_GCM_SHA384", "TLSv1.3")
"""What all servers agree on with OpenSSL's defaults, which all the load tools have."""


@dataclass(frozen=True)
class Protocol:
    http2: bool = False
    tls: bool = False

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    def words(self, certificate: Path) -> dict[str, str]:
        """The @WORDS@ of the configurations that say what the port speaks."""
        pem = certificate / "both.pem"
        alpn = "h2" if self.http2 else "http/1.1"
        files = {"certificate": certificate / "tls.crt", "certificate_key": certificate / "tls.key"}
        nginx = "".join(f"ssl_{name} {path}; " for name, path in files.items()) + "ssl_protocols TLSv1.3;"
        gateway = f'cert_file = "{files["certificate"]}"\nkey_file = "{files["certificate_key"]}"'
        return {
            "BIND": f"ssl crt {pem} ssl-min-ver TLSv1.3 alpn {alpn}" if self.tls else "proto h2" if self.http2 else "",
            "LISTEN": " ".join(["ssl"] * self.tls + ["http2"] * self.http2),
            "NGINX_TLS": nginx if self.tls else "",
            "GATEWAY_TLS": gateway if self.tls else "",
        }


HTTP1, HTTP2 = Protocol(), Protocol(http2=True)
TLS, HTTP2_TLS = Protocol(tls=True), Protocol(http2=True, tls=True)


def make_certificate(directory: Path) -> Path:
    """The folder with the one certificate that all servers have: self-signed, ECDSA with P-256."""
    directory.mkdir()
    crt, key = directory / "tls.crt", directory / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "60", "-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(crt)]
    subprocess.run(command, check=True, capture_output=True)
    (directory / "both.pem").write_text(crt.read_text() + key.read_text())
    return directory


def client_context() -> ssl.SSLContext:
    """For a client that accepts any certificate, as the load tools do."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_suite(name: str, version: str) -> None:
    """Ends the run if a server does not take what all others take."""
    if (name, version) != SUITE:
        raise RuntimeError(f"a server has chosen {name} of {version}, not {' of '.join(SUITE)}")
