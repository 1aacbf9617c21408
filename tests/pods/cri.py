"""cri.py - speak to containerd as a kubelet does, over its CRI socket

The messages are compiled from cri.proto into a temporary directory when this is imported.
"""
import importlib
import pathlib
import subprocess
import sys
import tempfile

import grpc


def _compile():
    here = pathlib.Path(__file__).parent
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(["protoc", f"-I{here}", f"--python_out={out}", "cri.proto"], check=True)
        sys.path.insert(0, out)
        try:
            return importlib.import_module("cri_pb2")
        finally:
            sys.path.remove(out)


pb = _compile()
_METHODS = {
    "Version": (pb.VersionRequest, pb.VersionResponse),
    "Status": (pb.StatusRequest, pb.StatusResponse),
    "RunPodSandbox": (pb.RunPodSandboxRequest, pb.RunPodSandboxResponse),
    "StopPodSandbox": (pb.PodSandboxRequest, pb.Empty),
    "RemovePodSandbox": (pb.PodSandboxRequest, pb.Empty),
    "PodSandboxStatus": (pb.PodSandboxRequest, pb.PodSandboxStatusResponse),
    "ListPodSandbox": (pb.ListPodSandboxRequest, pb.ListPodSandboxResponse),
    "CreateContainer": (pb.CreateContainerRequest, pb.CreateContainerResponse),
    "StartContainer": (pb.ContainerRequest, pb.Empty),
    "StopContainer": (pb.StopContainerRequest, pb.Empty),
    "RemoveContainer": (pb.ContainerRequest, pb.Empty),
    "ListContainers": (pb.ListContainersRequest, pb.ListContainersResponse),
    "ContainerStatus": (pb.ContainerRequest, pb.ContainerStatusResponse),
    "UpdateContainerResources": (pb.UpdateContainerResourcesRequest, pb.Empty),
    "ExecSync": (pb.ExecSyncRequest, pb.ExecSyncResponse),
    "Attach": (pb.AttachRequest, pb.AttachResponse),
    "ContainerStats": (pb.ContainerRequest, pb.ContainerStatsResponse),
    "ImageStatus": (pb.ImageStatusRequest, pb.ImageStatusResponse),
}


class Refused(Exception):
    """containerd answered with an error."""

    def __init__(self, method, error):
        super().__init__(f"{method}: {error.details()}")
        self.code, self.details = error.code(), error.details()


class Cri:
    def __init__(self, socket, timeout):
        self.channel = grpc.insecure_channel(f"unix://{socket}")
        self.timeout = timeout

    def close(self):
        self.channel.close()

    def __call__(self, method, _timeout=None, **fields):
        request, response = _METHODS[method]
        service = "ImageService" if method == "ImageStatus" else "RuntimeService"
        call = self.channel.unary_unary(f"/runtime.v1.{service}/{method}",
                                        request_serializer=request.SerializeToString,
                                        response_deserializer=response.FromString)
        try:
            return call(request(**fields), timeout=_timeout or self.timeout, wait_for_ready=True)
        except grpc.RpcError as e:
            raise Refused(method, e) from None
