module kybernate.invalid/tests/kube/probe

go 1.26.0
