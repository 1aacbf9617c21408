def pytest_configure(config):
    config.addinivalue_line("markers", "debian: boots Debian guests; needs a KVM that runs Linux")
