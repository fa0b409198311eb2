from mdmf_deploy.cli import main

main()
