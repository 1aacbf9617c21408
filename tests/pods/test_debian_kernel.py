"""test_debian_kernel.py - pods of tiny guests again, on a node with the kernel that users have

Of test_life.py and test_failures.py what a node's kernel has a part in: control groups of version 2,
the classifier matchall, vhost-net, KVM in hardware.
"""
import pytest

from debian_pod import why_not
from test_failures import running, test_machine_killed, test_out_of_memory, test_shim_killed
from test_life import (test_cpus_are_the_limit, test_from_creation_to_removal, test_process,
                       test_stats, test_twenty_at_once, test_update, test_vhost_is_the_nodes_choice)

__all__ = ("running", "test_cpus_are_the_limit", "test_from_creation_to_removal",
           "test_machine_killed", "test_out_of_memory", "test_process", "test_shim_killed",
           "test_stats", "test_twenty_at_once", "test_update", "test_vhost_is_the_nodes_choice")

WHY_NOT = why_not()
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]
