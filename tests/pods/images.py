"""images.py - container images made on the spot, as OCI archives: no registry, nothing downloaded"""
import hashlib
import io
import json
import tarfile


def _blob(tar, data):
    digest = hashlib.sha256(data).hexdigest()
    _file(tar, f"blobs/sha256/{digest}", data)
    return f"sha256:{digest}", len(data)


def _file(tar, name, data, mode=0o644):
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def layer(files):
    """A layer of {path: bytes, or "-> target" for a symbolic link}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            if isinstance(data, str):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = tarfile.SYMTYPE, data.removeprefix("-> ")
                tar.addfile(info)
            else:
                _file(tar, name, data, 0o755)
    return out.getvalue()


def write(path, name, files, command=("vm",)):
    """An archive for `ctr images import` of one image of that name with one layer."""
    content = layer(files)
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": list(command)},
        "rootfs": {"type": "layers", "diff_ids": [
            "sha256:" + hashlib.sha256(content).hexdigest()]}}).encode()
    with tarfile.open(path, "w") as tar:
        layer_digest, layer_size = _blob(tar, content)
        config_digest, config_size = _blob(tar, config)
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": config_digest, "size": config_size},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
                        "digest": layer_digest, "size": layer_size}]}).encode()
        digest, size = _blob(tar, manifest)
        index = {"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
            "size": size, "annotations": {"io.containerd.image.name": name}}]}
        _file(tar, "index.json", json.dumps(index).encode())
        _file(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
